// Parses and validates the AsyncAPI document at a URL; prints what is wrong with it, and how many operations it has.
import { createRequire } from "node:module";

const [modules, url] = process.argv.slice(2);
const { Parser } = createRequire(`${modules}/`)("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(await (await fetch(url)).text());
const operations = document?.operations().all().map((operation) => operation.id()) ?? [];
console.log(JSON.stringify({ operations, diagnostics: diagnostics.map(({ code, message, path }) => ({ code, message, path })) }));

from __future__ import annotations

import pytest

from ws_chat import Settings, SettingsError


def test_the_defaults():
    settings = Settings.from_environment({})

    assert settings == Settings()
    assert settings.uses_demo
    assert (settings.model, settings.models) == ("gpt-4o-mini", ())


def test_the_environment_is_read():
    settings = Settings.from_environment(
        {
            "OPENAI_API_KEY": "sk-1",
            "OPENAI_BASE_URL": "http://127.0.0.1:11434/v1",
            "WS_CHAT_UPSTREAM": "openai",
            "WS_CHAT_MODEL": "llama",
            "WS_CHAT_MODELS": "llama*, gpt-4o ,,",
            "WS_CHAT_MAX_FRAME_BYTES": "1000",
            "WS_CHAT_MAX_CONNECTIONS": "1",
            "WS_CHAT_MAX_GENERATIONS": "2",
            "WS_CHAT_MAX_GENERATIONS_PER_CONNECTION": "3",
            "WS_CHAT_UPSTREAM_TIMEOUT": "0.5",
            "PATH": "/bin",
        }
    )

    assert settings == Settings(
        openai_api_key="sk-1",
        openai_base_url="http://127.0.0.1:11434/v1",
        upstream="openai",
        model="llama",
        models=("llama*", "gpt-4o"),
        max_frame_bytes=1000,
        max_connections=1,
        max_generations=2,
        max_generations_per_connection=3,
        upstream_timeout=0.5,
    )
    assert "sk-1" not in repr(settings)


def test_a_variable_set_to_nothing_is_not_set():
    assert Settings.from_environment({"OPENAI_API_KEY": "", "WS_CHAT_MODEL": " "}) == Settings()


@pytest.mark.parametrize(
    ("environ", "demo"),
    [
        ({}, True),
        ({"OPENAI_API_KEY": "sk-1"}, False),
        ({"OPENAI_BASE_URL": "http://x/v1"}, False),
        ({"WS_CHAT_UPSTREAM": "openai", "OPENAI_API_KEY": "sk-1\n"}, False),
        ({"WS_CHAT_UPSTREAM": "demo", "OPENAI_API_KEY": "sk-1"}, True),
    ],
)
def test_the_demo_answers_when_nothing_else_is_configured(environ, demo):
    assert Settings.from_environment(environ).uses_demo is demo


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WS_CHAT_UPSTREAM", "gemini"),
        ("WS_CHAT_MAX_FRAME_BYTES", "4 MiB"),
        ("WS_CHAT_MAX_CONNECTIONS", "0"),
        ("WS_CHAT_MAX_GENERATIONS", "1.5"),
        ("WS_CHAT_MAX_GENERATIONS_PER_CONNECTION", "-1"),
        ("WS_CHAT_UPSTREAM_TIMEOUT", "nan"),
        ("WS_CHAT_UPSTREAM_TIMEOUT", "inf"),
        ("WS_CHAT_UPSTREAM_TIMEOUT", "soon"),
        ("OPENAI_BASE_URL", "localhost:11434/v1"),
    ],
)
def test_what_makes_no_sense_is_named(name, value):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})

    assert name in str(caught.value)
    assert value in str(caught.value)


@pytest.mark.parametrize("name", ["WS_CHAT_API_KEYS", "WS_CHAT_MODELS", "WS_CHAT_ALLOWED_ORIGINS", "WS_CHAT_REDIS_URL"])
def test_a_list_of_nothing_is_named(name):
    with pytest.raises(SettingsError, match=f"{name} must have at least one entry"):
        Settings.from_environment({name: " , "})


@pytest.mark.parametrize("key", ["sk-ünïcode", "sk-a b", "sk-a\nb"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(key):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({"OPENAI_API_KEY": key})

    assert "OPENAI_API_KEY" in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_an_upstream_without_an_address_or_a_key_is_named():
    with pytest.raises(SettingsError, match="needs OPENAI_API_KEY or OPENAI_BASE_URL"):
        Settings.from_environment({"WS_CHAT_UPSTREAM": "openai"})


def test_a_file_that_is_not_utf8_is_named(tmp_path, monkeypatch):
    (tmp_path / ".env").write_bytes(b"OPENAI_API_KEY=\xff\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SettingsError, match=r"\.env is not UTF-8"):
        Settings.load()


def test_a_file_is_read_and_the_environment_goes_before_it(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-file\nWS_CHAT_MODEL=file\nWS_CHAT_MODELS=\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("WS_CHAT_MODEL", "environment")

    settings = Settings.load()

    assert (settings.openai_api_key, settings.model) == ("sk-file", "environment")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "WS_CHAT_UPSTREAM",
            "gemini",
            "must be 'auto', 'openai' or 'demo', got 'gemini' (example: WS_CHAT_UPSTREAM=auto)",
        ),
        ("WS_CHAT_MAX_CONNECTIONS", "0", "must be greater than 0, got '0' (example: WS_CHAT_MAX_CONNECTIONS=20000)"),
        (
            "WS_CHAT_API_KEYS",
            "k,a b",
            "must consist of visible ASCII characters (example: WS_CHAT_API_KEYS=a-long-random-key)",
        ),
        (
            "WS_CHAT_ALLOWED_ORIGINS",
            "*,https://a/b",
            "must be a scheme and a host, without a path, got 'https://a/b' (example: WS_CHAT_ALLOWED_ORIGINS=https://chat.example.com)",
        ),
        (
            "WS_CHAT_ALLOWED_HOSTS",
            "*.example.com, https://a",
            "must be host names or shell patterns, without a scheme and a path, got 'https://a' (example: WS_CHAT_ALLOWED_HOSTS=chat.example.com)",
        ),
    ],
)
def test_a_message_names_the_variable_the_value_the_fault_and_an_example(name, value, message):
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({name: value})

    assert str(caught.value) == f"{name} {message}"


def test_all_wrong_variables_are_named_at_once():
    with pytest.raises(SettingsError, match=r"WS_CHAT_RETENTION .*; WS_CHAT_LOG_CONTENT "):
        Settings.from_environment({"WS_CHAT_RETENTION": "long", "WS_CHAT_LOG_CONTENT": "maybe"})

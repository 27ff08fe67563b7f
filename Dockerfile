# docker build -t ws-chat . && docker run -p 8000:8000 ws-chat     (docs/deployment.md)
FROM python:3.13-slim AS build
WORKDIR /src
COPY .ci/constraints.txt pyproject.toml README.md LICENSE ./
COPY ws_chat ws_chat
RUN ["python", "-m", "venv", "/opt/ws-chat"]
RUN ["/opt/ws-chat/bin/pip", "install", "--no-cache-dir", "--constraint", "constraints.txt", ".[redis]"]

FROM python:3.13-slim
COPY --from=build /opt/ws-chat /opt/ws-chat
ENV PATH=/opt/ws-chat/bin:$PATH
# A user without a home: the server writes nothing, except for a temporary folder with several workers.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# Started without a shell in between, so that signals reach it. Options are put behind: docker run ws-chat --workers 4
ENTRYPOINT ["ws-chat", "serve", "--host", "0.0.0.0"]

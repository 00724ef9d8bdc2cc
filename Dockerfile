# One image for the connector, `connector topics` and the sample upstream.
#
# The base is pinned by tag. A release pins it by digest too, so that a build can be repeated:
#   docker buildx imagetools inspect python:3.13-slim --format '{{.Manifest.Digest}}'
#   docker build --build-arg PYTHON_IMAGE=python:3.13-slim@sha256:<digest> .
ARG PYTHON_IMAGE=python:3.13-slim


# The wheel, made by the locked build tools. Nothing of this stage but the wheel goes on.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements/dev.txt requirements/
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY connector/ connector/
COPY examples/upstream/ examples/upstream/
COPY deploy/local/ deploy/local/
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -w /dist .


# The virtual environment, without pip in it. Requirements come first: they change less often
# than the code, so most builds take them from the cache. --only-binary: a dependency that would
# need a compiler stops the build here instead of bringing one in.
FROM ${PYTHON_IMAGE} AS venv
RUN python -m venv --without-pip /opt/connector
COPY requirements/run.txt /tmp/requirements/
RUN pip --python /opt/connector/bin/python install --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes -r /tmp/requirements/run.txt
COPY --from=wheel /dist/ /tmp/dist/
RUN pip --python /opt/connector/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-index --no-deps /tmp/dist/*.whl


FROM ${PYTHON_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kafka-stream-connector" \
      org.opencontainers.image.description="Reads predicates from a Kafka topic, streams matching statuses over HTTP and writes them to Kafka with delivery guarantees." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=venv /opt/connector/ /opt/connector/

# pip wrote the bytecode above; at run time nothing is written, so the root may be read-only.
ENV PATH=/opt/connector/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1

# Numeric, so that Kubernetes can see for itself that it is not root (runAsNonRoot).
USER 65532:65532
WORKDIR /
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["connector"]
CMD ["run", "--config", "/etc/connector/connector.yaml"]

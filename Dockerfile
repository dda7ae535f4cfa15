# The sidecar as an image; compose.yaml says how it is run, and why so.

# To be sure of every byte of the base, name its digest too, as `docker images --digests` or
# `skopeo inspect` shows it: --build-arg BASE=debian:13.1-slim@sha256:…
ARG BASE=debian:13.1-slim

# --- everything that only the build needs -----------------------------------------------------
FROM ${BASE} AS build
# Debian's stable release changes a version only to mend it, and that must not be missed.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libcap2-bin python3-venv \
    && rm -rf /var/lib/apt/lists/*
# pip is here, and the environment that is taken along has none.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/paliadin
WORKDIR /src
COPY requirements/sidecar.txt requirements/report.txt requirements/build.txt requirements/
# A registry of your own: --secret id=pip.conf,src=…
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /build/bin/pip install --no-cache-dir --only-binary :all: --require-hashes \
    --requirement requirements/build.txt \
    && /build/bin/pip --python /opt/paliadin/bin/python install --no-cache-dir \
    --only-binary :all: --require-hashes --requirement requirements/sidecar.txt \
    --requirement requirements/report.txt
COPY . .
# Nothing is fetched from here on: what builds the package was locked too.
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheels . \
    && /build/bin/pip --python /opt/paliadin/bin/python install --no-deps --no-index \
    /build/wheels/*.whl
# Docker gives a user other than root no capability, except by the file that is executed. So this
# interpreter has the two that the job needs, and does not start where they were not granted.
RUN cp "$(readlink -f /usr/bin/python3)" /opt/paliadin/bin/python-with-capabilities \
    && setcap cap_dac_read_search,cap_lease=ep /opt/paliadin/bin/python-with-capabilities
# What `docker compose exec` and the health check type: it sees as the daemon sees. Where the two
# were not granted, as for the agent's own user, any Python will do.
# hadolint ignore=SC2016
RUN printf '%s\n' '#!/bin/sh' 'python=python-with-capabilities' \
    '"$python" -ISc 0 2>/dev/null || python=python' \
    'exec "$python" -P -m paliadin_sidecar.operator.cli "$@"' >/opt/paliadin/bin/paliadin-sidecar

# --- what runs --------------------------------------------------------------------------------
FROM ${BASE}
LABEL org.opencontainers.image.title="paliadin-sidecar" \
      org.opencontainers.image.description="Pushes the completed answers of paliad's assistant" \
      org.opencontainers.image.version="0.1.0"
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 paliadin-sidecar \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /var/lib/paliadin-sidecar \
       --shell /usr/sbin/nologin paliadin-sidecar \
    && install -d -m 700 -o 65532 -g 65532 /var/lib/paliadin-sidecar
COPY --from=build /opt/paliadin /opt/paliadin
ENV PATH=/opt/paliadin/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MALLOC_MMAP_THRESHOLD_=1048576
USER 65532:65532
# Not the state directory: Python would run what lies in the working directory, as -P forbids too.
WORKDIR /
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=1m --timeout=10s --start-period=1m CMD ["paliadin-sidecar", "status", "--quiet"]
ENTRYPOINT ["python-with-capabilities", "-P", "-m", "paliadin_sidecar.operator.cli"]
CMD ["run"]

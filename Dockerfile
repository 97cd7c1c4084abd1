# The command line in an image without a GPU:
#   docker build -t ssm-metarl .
#   docker run --rm --init -v ssm-metarl:/data ssm-metarl --goal "beat LSTM on point-robot" --budget 10m
# Ledger, reports and kept models lie in the volume. compose.yaml puts a PostgreSQL ledger beside it.

FROM python:3.12-slim AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# First the libraries, which change seldom, and PyTorch from the index of its builds without CUDA.
COPY requirements.txt ./
RUN grep '^torch' requirements.txt > torch.txt \
    && pip install --index-url https://download.pytorch.org/whl/cpu -r torch.txt \
    && pip install -r requirements.txt
COPY pyproject.toml README.md LICENSE main.py ./
COPY core core
COPY env_runner env_runner
COPY adaptation adaptation
COPY meta_rl meta_rl
COPY experiments experiments
COPY multi_agent multi_agent
COPY cli cli
RUN pip install ".[postgres]"

FROM python:3.12-slim
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 researcher && mkdir /data && chown researcher: /data
USER researcher
# Installed without a checkout, everything is written below the folder where the command is called.
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGINT
ENTRYPOINT ["ssm-metarl"]
CMD ["--help"]

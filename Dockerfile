# Plumb on a CUDA box. Built nowhere yet: the machine it was written on has no container engine.
#   docker build -t plumb . && docker run --gpus all -p 7860:7860 -v plumb-data:/data plumb
# It listens on all addresses, so it asks for the token that it prints at its first start.
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 plumb && install -d -o 1000 /data /app
WORKDIR /app

COPY requirements.txt requirements-demo.txt ./
# The torch wheel from PyPI brings its own CUDA libraries; the host brings the driver.
RUN pip install --no-cache-dir -r requirements.txt \
    && pip install --no-cache-dir --no-deps -r requirements-demo.txt

COPY --chown=1000 . .
USER 1000
ENV PLUMB_DATA=/data PLUMB_HOST=0.0.0.0 PLUMB_PORT=7860 PYTHONUNBUFFERED=1 HF_HOME=/data/hub
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["python", "app.py"]

#!/bin/sh
# In an image's build stage: install this project into the virtual environment on PATH, keep of it what
# serves, and remove the installer.
set -eu
pip install -q --no-deps .
packages=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm -rf "$packages/training" "$packages/model_export" "$packages/evaluation"
bin=$(dirname "$(command -v mexma-serve)")
rm -f "$bin/mexma-train" "$bin/mexma-export" "$bin/mexma-evaluate"
# The engine is asked for once here, so that an image that cannot serve is never finished.
python3 -c 'import service.app, mexma.encoder, faiss'
pip uninstall -q -y setuptools pip

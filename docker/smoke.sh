#!/bin/sh
# Loads what this image is for, and fails when something does not load.
set -eu
hvkf doctor
python -c "import flows.pipeline, hvkf.storage_s3; print('flows and S3 load')"
if [ -d "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch" ]; then
  python -c "import torch, hvkf.model.loading, hvkf.shards
print('models and shards load;', torch.cuda.device_count(), 'GPUs')"
fi

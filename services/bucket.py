"""The bucket of the store, made once: `python -m services.bucket`, with the settings in the environment."""

import os

from services.servers import make_bucket

if __name__ == "__main__":
    make_bucket(dict(os.environ))

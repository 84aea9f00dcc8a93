import os

# Before anything imports transformers: tests use the bundled models, and no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MISTRAL_LAB_MODEL", None)

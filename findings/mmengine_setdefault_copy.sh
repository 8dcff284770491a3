#!/usr/bin/env bash
# onedl-mmengine 0.10.12 and mmengine 0.10.7: `ConfigDict.setdefault` returns an object that is not in the config.
#
# A tool that sets one nested key of a user's config writes, as with any dict,
# `config.setdefault("randomness", {})["seed"] = 3`. Expected: the node that is returned is the stored
# one, as `dict.setdefault` promises, and the seed arrives. Seen: the value is stored as a converted
# copy (a ConfigDict), the plain dict that was given is returned, and the seed is written into that one:
# the config keeps `randomness = {}`, and the training draws its own seed. No message. Where the key
# exists, the stored node is returned, so tests with a full config do not show it.
#
# Call `config.setdefault(key, {})`, then read `config[key]`. Fails if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/config.py" <<'PROGRAM'
from mmengine.config import ConfigDict

missing = ConfigDict()
missing.setdefault("randomness", {})["seed"] = 3
present = ConfigDict(randomness={})
present.setdefault("randomness", {})["seed"] = 3
read_again = ConfigDict()
read_again.setdefault("randomness", {})
read_again["randomness"]["seed"] = 3
print("missing", missing, "present", present, "read again", read_again)
assert missing == {"randomness": {}}
assert present == read_again == {"randomness": {"seed": 3}}
PROGRAM
for package in onedl-mmengine==0.10.12 mmengine==0.10.7; do
    python3 -m venv --clear "$folder/venv"
    "$folder/venv/bin/pip" install --quiet "$package" addict==2.4.0
    echo "$package"
    "$folder/venv/bin/python" "$folder/config.py"
done

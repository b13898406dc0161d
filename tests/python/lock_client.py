"""The Python side of the lock's convention: SET NX EX, and compare-and-delete.

Usage: lock_client.py REDIS_URL KEY. Reads `take` and `free` from standard input, a line each, and
says `taken`, `busy`, `freed` or `not mine`.
"""

import sys
import uuid

import redis

FREE = """
if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) else return 0 end
"""

client = redis.Redis.from_url(sys.argv[1])
key, token = sys.argv[2], str(uuid.uuid4())
free = client.register_script(FREE)
for line in sys.stdin:
    if line.strip() == "take":
        print("taken" if client.set(key, token, nx=True, ex=300) else "busy", flush=True)
    else:
        print("freed" if free(keys=[key], args=[token]) else "not mine", flush=True)

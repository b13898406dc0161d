"""A session's lock as agents have it that take it themselves, in Python: SET NX EX, compare-and-delete.

`with_session_lock` around an agent's method, `SessionLockContext` around anything, `is_session_locked`
and `force_release` for operators; four parameters. A holder knows nothing of lines: one that blocks
looks again and again.
"""

import asyncio
import functools
import os
import time
import uuid

import redis.asyncio

RELEASE = """
if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("del", KEYS[1]) else return 0 end
"""
EXTEND = """
if redis.call("get", KEYS[1]) == ARGV[1] then return redis.call("expire", KEYS[1], ARGV[2]) else return 0 end
"""
# How long a blocking acquire sleeps between two looks, in seconds.
PAUSE = 0.05


class SessionLockedError(Exception):
    def __init__(self, key):
        self.detail = f"[{key}] 锁已被占用"


class DistributedLock:
    def __init__(self, url):
        self.redis = redis.asyncio.Redis.from_url(url)
        self.release_script = self.redis.register_script(RELEASE)
        self.extend_script = self.redis.register_script(EXTEND)

    @staticmethod
    def key(name):
        return f"lock:session:{name}"

    async def acquire(self, name, lock_timeout, blocking, blocking_timeout):
        token, key = str(uuid.uuid4()), self.key(name)
        end = None if blocking_timeout is None else time.monotonic() + blocking_timeout
        while not await self.redis.set(key, token, nx=True, ex=lock_timeout):
            if not blocking or end is not None and time.monotonic() > end:
                raise SessionLockedError(key)
            await asyncio.sleep(PAUSE)
        return token

    async def release(self, name, token):
        return await self.release_script(keys=[self.key(name)], args=[token])

    async def extend(self, name, token, lock_timeout):
        return await self.extend_script(keys=[self.key(name)], args=[token, lock_timeout])

    async def is_locked(self, name):
        return await self.redis.exists(self.key(name)) == 1

    async def force_release(self, name):
        return await self.redis.delete(self.key(name)) == 1


_lock = None


async def get_distributed_lock():
    global _lock
    if _lock is None:
        _lock = DistributedLock(os.environ["REDIS_URL"])
    return _lock


class SessionLockContext:
    def __init__(
        self,
        session_id,
        user_id,
        lock_timeout=300,
        blocking=False,
        blocking_timeout=None,
        extend_lock_interval=None,
    ):
        self.name = f"{user_id}:{session_id}"
        self.lock_timeout = lock_timeout
        self.blocking, self.blocking_timeout = blocking, blocking_timeout
        self.extend_lock_interval = extend_lock_interval
        self.extending = None

    async def __aenter__(self):
        self.lock = await get_distributed_lock()
        self.token = await self.lock.acquire(
            self.name, self.lock_timeout, self.blocking, self.blocking_timeout
        )
        if self.extend_lock_interval is not None:
            self.extending = asyncio.create_task(self._extend())
        return self

    async def _extend(self):
        while True:
            await asyncio.sleep(self.extend_lock_interval)
            if not await self.lock.extend(self.name, self.token, self.lock_timeout):
                return

    async def __aexit__(self, *_):
        if self.extending is not None:
            self.extending.cancel()
        await self.lock.release(self.name, self.token)


def with_session_lock(**parameters):
    def decorate(method):
        @functools.wraps(method)
        async def locked(self, request_data, context=None):
            context = context or {}
            session_id = context.get("session_id", "unknown")
            user_id = context.get("user_id", "unknown")
            async with SessionLockContext(session_id, user_id, **parameters):
                async for event in method(self, request_data, context):
                    yield event

        return locked

    return decorate


async def is_session_locked(session_id, user_id):
    lock = await get_distributed_lock()
    return await lock.is_locked(f"{user_id}:{session_id}")

"""The Vercel AI SDK 7 in Next.js, with the guides' store of chats: a client sends its last message only."""

import shlex

from vercel_calls import VercelAi


class Next(VercelAi):
    def command(self, port: int) -> list[str]:
        def line(*words: str) -> str:
            return shlex.join(self.node("../node_modules/next/dist/bin/next", *words))

        return ["sh", "-c", f"{line('build')} && exec {line('start', '--hostname', '127.0.0.1', '--port', str(port))}"]

    def env(self) -> dict[str, str]:
        return {**super().env(), "CHATS": "chats", "NEXT_TELEMETRY_DISABLED": "1"}

    def body(self, session: str, text: str) -> dict:
        body = super().body(session, text)
        (message,) = body.pop("messages")
        return {**body, "message": message}


backend = Next()

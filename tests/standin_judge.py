"""A judge on loopback that speaks the part of OpenAI's protocol that `win_rates` uses (POST /v1/chat/completions).

It prefers the answer that begins with the larger number, and can be told to answer late, with errors, with nonsense, or
not at all.
"""

import json
import re
import time

from standin_orders import Ordered

ANSWERS = re.compile(r"<answer_([AB])>\n(\d*)")


class StandIn(Ordered):
    """A judge, where no order says otherwise. `likes`: what is added to the first answer."""

    usual = "judge"

    def __init__(self):
        super().__init__()
        self.likes, self.url = 0, f"{self.root}v1"

    def seen(self, request, query):
        return request.path, request.headers["Authorization"], query

    def said(self, query):
        [message] = query["messages"]
        first, second = (int(number or 0) for _, number in ANSWERS.findall(message["content"]))
        first += self.likes
        return "TIE" if first == second else "A" if first > second else "B"

    def carry_out(self, request, order, query):
        def answer(content):
            return json.dumps({"id": "x", "object": "chat.completion", "model": query["model"], "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}]}).encode()

        status, body, headers = 200, answer(self.said(query)), {}
        if order == "drop":
            request.close_connection = True
            return
        if order == "late":
            time.sleep(0.6)
        elif order == "busy":
            status, body, headers = 429, b'{"error": {"message": "Rate limit reached"}}', {"Retry-After": "7"}
        elif order == "error":
            status, body = 500, b'{"error": {"message": "The server had an error"}}'
        elif order == "a page":
            status, body = 502, b"<html>Bad gateway</html>"
        elif order == "no JSON":
            body = b"<html>maintenance</html>"
        elif order == "no choices":
            body = b'{"choices": []}'
        elif order == "error in a good answer":
            body = b'{"error": "out of memory"}'
        elif order == "refuse":
            status, body = 401, b'{"error": {"message": "Incorrect API key provided"}}'
        elif order.startswith("say "):
            body = answer(order.removeprefix("say "))
        elif order == "null":
            body = answer(None)
        self.send(request, status, body, headers)

"""Run by the tests inside the front ends' own virtual environment: two streamed turns of a chat through the OpenAI SDK.

Arguments: base URL, and the path of a Unix socket ("" for TCP). Prints one JSON object.
"""

import json
import sys

import httpx2
import openai


def main() -> None:
    base_url, socket_path = sys.argv[1:3]
    transport = httpx2.HTTPTransport(uds=socket_path) if socket_path else None
    http = httpx2.Client(transport=transport) if transport else None
    client = openai.OpenAI(base_url=base_url, api_key="none", http_client=http)
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": f"Explain prefix caching over {socket_path or 'TCP'}. " * 12}]
    turns = []
    for _ in range(2):
        chunks = list(
            client.chat.completions.create(
                model=model,
                messages=messages,
                max_tokens=100,
                temperature=0,
                extra_body={"ignore_eos": True},
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        usage = chunks[-1].usage
        pieces = sum(bool(c.choices and c.choices[0].delta.content) for c in chunks)
        cached = usage.prompt_tokens_details.cached_tokens
        turns.append({"text": text, "pieces": pieces, "prompt": usage.prompt_tokens, "cached": cached})
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Go on."}]
    try:
        client.chat.completions.create(model="gpt-7", messages=messages)
        refused = ""
    except openai.NotFoundError as error:
        refused = f"{error.code}: {error.body['message']}"
    sys.stdout.write(json.dumps({"model": model, "turns": turns, "refused": refused}))


if __name__ == "__main__":
    main()

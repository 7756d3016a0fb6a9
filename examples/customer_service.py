"""A shop's customer service: each turn is answered in JSON of a given form, which the shop can act on.

    python examples/customer_service.py      # then write as a customer would, a line a turn

It shows a conversation of which only the new words are computed at each turn, and an answer whose form the
model can't miss.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from draftd.ipc import Client, DraftdError

RULES = """You answer the customers of Lumen, a shop for lamps. The shop's rules:
- A lamp can be returned within 30 days, unused and in its box. The postage is free.
- A lamp that arrived broken is replaced at once. This needs the order number, six digits.
- Delivery takes 3 to 5 days and costs 4.90. From 50.00 on it is free.
- You can't change an order. A colleague can, and will call the customer.
Answer in JSON. "reply" is what you say to the customer, in one or two friendly sentences. "topic" is what the
customer's last message is about. "order_number" is null until the customer has given one.
"needs_colleague" is false unless the customer wants an order changed."""

PLAIN = r"^[ !#-\[\]-~]{1,300}$"  # ASCII without quotes and backslashes
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reply": {"type": "string", "pattern": PLAIN},
        "topic": {"enum": ["return", "broken lamp", "delivery", "change an order", "something else"]},
        "order_number": {"anyOf": [{"type": "string", "pattern": "^[0-9]{6}$"}, {"type": "null"}]},
        "needs_colleague": {"type": "boolean"},
    },
    "required": ["reply", "topic", "order_number", "needs_colleague"],
    "additionalProperties": False,
}
LONGEST = 500  # tokens: more than an answer of this form takes, so that none is cut in the middle


def main() -> None:
    turns = [{"role": "system", "content": RULES}]
    print("Lumen, good day! How can I help you?")
    with Client(name="customer-service") as client:
        for line in sys.stdin:
            turns.append({"role": "user", "content": line.strip()})
            answer = client.complete(
                messages=turns, grammar={"kind": "json_schema", "source": FORM}, max_tokens=LONGEST
            )
            if answer.finish_reason != "stop":
                sys.exit("the conversation fills the daemon's context: begin another")
            turns.append({"role": "assistant", "content": answer.text})
            ticket = json.loads(answer.text)
            print(ticket.pop("reply"))
            known = f"{answer.usage.cached_tokens} of {answer.usage.prompt_tokens} prompt tokens were known"
            print(f"    {json.dumps(ticket)}  ({known})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main()
    except DraftdError as error:
        sys.exit(error.message)

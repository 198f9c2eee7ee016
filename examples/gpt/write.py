"""Let the model go on with a text: python write.py model.safetensors 'def '."""

import sys

import torch
from safetensors.torch import load_file
from task import CONTEXT, Language
from tokenizers import Tokenizer


def main(weights="model.safetensors", text="def ", length=60):
    tokenizer = Tokenizer.from_file("tokenizer/tokenizer.json")
    model = Language().model()
    model.load_state_dict(load_file(weights))
    model.eval()
    tokens = tokenizer.encode(text).ids
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(length):
            logits = model(torch.tensor([tokens[-CONTEXT:]]))[0, -1]
            best = logits.topk(20)
            drawn = torch.multinomial(best.values.softmax(0), 1)
            tokens.append(int(best.indices[drawn]))
    print(tokenizer.decode(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])

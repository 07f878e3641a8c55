"""Runs Molmo for `molmoact_training.pointing`: pictures and prompts in, answers out, a line of JSON each.

Started by path, in an environment that has torch, transformers and Molmo's own requirements but nothing of this
workspace: so it imports nothing of it.
"""

import base64
import io
import json
import os
import sys

MAX_NEW_TOKENS = 448


def load(directory):
    """(processor, model) with the code that lies beside the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    local = {"trust_remote_code": True, "local_files_only": True}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    processor = AutoProcessor.from_pretrained(directory, **local)
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=dtype, **local)
    return processor, model.to(device).eval()


def answer(processor, model, image, prompt):
    """The text Molmo writes, greedy."""
    import torch
    from transformers import GenerationConfig

    inputs = processor.process(images=[image], text=prompt)
    inputs = {name: value.to(model.device).unsqueeze(0) for name, value in inputs.items()}
    inputs["images"] = inputs["images"].to(model.dtype)
    generation = GenerationConfig(max_new_tokens=MAX_NEW_TOKENS, do_sample=False, stop_strings="<|endoftext|>")
    with torch.inference_mode():
        output = model.generate_from_batch(inputs, generation, tokenizer=processor.tokenizer)
    return processor.tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def main():
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print do not print into the replies

    def reply(content):
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    try:
        from PIL import Image

        processor, model = load(sys.argv[1])
        reply({"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
            reply({"text": answer(processor, model, image, request["prompt"])})
    except Exception as error:  # whatever a model's own code raises, the other side has to be told
        reply({"error": repr(error)})
        raise


if __name__ == "__main__":
    main()

"""A model with Molmo's interface that points at the brightest pixel: what stands in for 8 billion parameters."""

import torch
from transformers import PretrainedConfig, PreTrainedModel


class PointingConfig(PretrainedConfig):
    model_type = "pointing"


class PointingModel(PreTrainedModel):
    config_class = PointingConfig

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def generate_from_batch(self, batch, generation_config, tokenizer):
        print("a library that prints")
        picture = batch["images"][0]
        rows, columns = picture.shape
        if not picture.any():
            text = '<points x1="1.0" y1="2.0" x2="3.0" y2="4.0" alt="">two</points>'
        else:
            row, column = divmod(int(picture.argmax()), columns)
            text = f' <point x="{100 * column / columns:.1f}" y="{100 * row / rows:.1f}" alt="g">g</point>'
        written = torch.tensor([list(text.encode())])
        return torch.cat([batch["input_ids"], written], 1)

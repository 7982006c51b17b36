"""Train the digit classifier that measures samples of MNIST, ``pyro_gram/diagnostics/digits.safetensors``.

Half of the batches hold images of 28 x 28 pixels. A quarter hold such images, shifted by up to two pixels. The last
quarter hold images of 14 x 14 pixels, so that one classifier reads both sizes. Training takes two minutes on one core.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

from pyro_gram.checks import check_seed
from pyro_gram.diagnostics.digits import WEIGHTS, DigitClassifier
from pyro_gram.errors import UserError
from pyro_gram.system.cli import Parser, call
from pyro_gram.system.files import write_atomically, write_json
from pyro_gram.tasks.batches import generator_for
from pyro_gram.tasks.mnist import MNIST, MNISTConfig

BATCH, PEAK_LR, WEIGHT_DECAY = 128, 3e-3, 1e-2
SMALL = {"side": 14, "patch": 2}


def shift_images(pixels: Tensor, generator: torch.Generator, max_shift: int = 2) -> Tensor:
    """Shift all square images of a batch ``[B, P]`` by the same number of pixels, at most ``max_shift`` each way."""
    side = math.isqrt(pixels.shape[-1])
    down, right = torch.randint(0, 2 * max_shift + 1, (2,), generator=generator).tolist()
    padded_pixels = F.pad(pixels.view(-1, side, side), (max_shift,) * 4)
    return padded_pixels[:, down : down + side, right : right + side].flatten(1)


def train(large: Tensor, small: Tensor, labels: Tensor, seed: int, epochs: int) -> DigitClassifier:
    """Train the classifier with AdamW and a one-cycle schedule of the learning rate.

    Args:
        large: uint8 ``[M, 784]``.
        small: the same images, uint8 ``[M, 196]``.
        labels: int64 ``[M]``.
    """
    torch.manual_seed(seed)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    per_epoch = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LR, total_steps=epochs * per_epoch)
    generator = generator_for(seed, 0)
    order = torch.empty(0, dtype=torch.long)
    for number in trange(epochs * per_epoch, desc="train", file=sys.stderr, mininterval=1.0):
        if number % per_epoch == 0:
            order = torch.randperm(len(labels), generator=generator)
        index = order[number % per_epoch * BATCH :][:BATCH]
        pixels = small[index] if number % 4 == 3 else large[index]
        if number % 4 == 1:
            pixels = shift_images(pixels, generator)
        F.cross_entropy(model(pixels), labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return model.eval()


def accuracy(model: DigitClassifier, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        guess = torch.cat([model(part).argmax(-1) for part in pixels.split(1024)])
    return (guess == labels).double().mean().item()


def main(argv: list[str]) -> int:
    parser = Parser("train_classifier.py", description=__doc__)
    parser.add_argument("--data-dir", metavar="DIR", help="directory of the MNIST files (default: download them)")
    parser.add_argument("--out", type=Path, default=WEIGHTS, metavar="FILE", help="default: the file in the package")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default 0)")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="default 6")
    arguments = parser.parse_args(argv)
    check_seed(arguments.seed)
    if arguments.epochs < 1:
        raise UserError(f"--epochs must be at least 1, not {arguments.epochs}")
    if arguments.out.suffix != ".safetensors":
        raise UserError(f"--out {arguments.out} must end in .safetensors")
    task, small_task = (MNIST(MNISTConfig(**sizes), arguments.data_dir) for sizes in ({}, SMALL))

    large_images, small_images, labels = (
        task.split("train").solutions,
        small_task.split("train").solutions,
        task.labels("train"),
    )
    start = time.perf_counter()
    model = train(large_images, small_images, labels, arguments.seed, arguments.epochs)
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        **{
            f"accuracy_{split}{name}": accuracy(model, t.split(split).solutions, t.labels(split))
            for split in ("validation", "test")
            for name, t in (("", task), ("_14", small_task))
        },
        "train_images": len(labels),
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    weights = {name: t.contiguous() for name, t in model.state_dict().items()}
    metadata = {"made_by": "experiments/studies/train_classifier.py", "accuracy": str(result["accuracy_test"])}
    write_atomically(arguments.out, lambda path: save_file(weights, path, metadata=metadata))
    write_json(arguments.out.with_suffix(".json"), result)
    print(f"{result['accuracy_test']:.4f} of the test images right; written to {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(call(main))

"""Log where each layer is on its way to equilibrium while a network trains: JSON lines and TensorBoard.

    python examples/log_training.py --out out/training
    tensorboard --logdir out/training

Trains a small network with optax for a few seconds and leaves in --out: log.jsonl, TensorBoard events, and checkpoints,
of which `teleojax track out/training/checkpoints` says where they change. Needs `pip install tensorboardX safetensors`.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file
from tensorboardX import SummaryWriter

import teleojax as tj

parser = argparse.ArgumentParser(description="Training with teleojax in the optimiser's state, and two loggers.")
parser.add_argument("--out", type=Path, default=Path("out/training"), metavar="DIR", help="folder of what is written")
parser.add_argument("--steps", type=int, default=400, metavar="N", help="steps of training")
parser.add_argument("--every", type=int, default=50, metavar="K", help="steps between two lines of the log")
options = parser.parse_args()
(options.out / "checkpoints").mkdir(parents=True, exist_ok=True)

# A network of three layers is to learn what another one does.
INPUTS, WIDTH, OUTPUTS, EXAMPLES = 32, 128, 8, 2048
teacher, first, second, third = jax.random.split(jax.random.key(0), 4)
x = jax.random.normal(jax.random.key(1), (EXAMPLES, INPUTS))
y = jnp.sin(x @ jax.random.normal(teacher, (INPUTS, OUTPUTS)) / 2)
he = tj.train.lognormal_he(sigma=0.5)  # an initialiser: |w| lognormal, random signs, He's scale
params = {
    "layers": [he(first, (INPUTS, WIDTH)), he(second, (WIDTH, WIDTH))],
    "head": jax.random.normal(third, (WIDTH, OUTPUTS)) / WIDTH**0.5,
}


def loss_of(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """The mean squared error."""
    for w in params["layers"]:
        x = jax.nn.relu(x @ w)
    return jnp.mean(jnp.square(x @ params["head"] - y))


# The statistics live in the optimiser's state: nothing leaves the device until they are read.
optimiser = optax.chain(optax.adam(3e-3), tj.train.track_log_moments(every=options.every))
state = optimiser.init(params)


@jax.jit
def step_of(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState, jax.Array]:
    """One step of gradient descent."""
    loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
    updates, state = optimiser.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


with SummaryWriter(str(options.out)) as board, (options.out / "log.jsonl").open("w", encoding="utf-8") as log:
    for step in range(options.steps + 1):
        if due := step % options.every == 0:
            flat = {
                ".".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path): np.asarray(w)
                for path, w in jax.tree_util.tree_leaves_with_path(params)
            }
            save_file(flat, options.out / "checkpoints" / f"step_{step}.safetensors")
        params, state, loss = step_of(params, state)
        if not due:
            continue
        board.add_scalar("loss", float(loss), step)
        for name, layer in tj.train.read(state).items():  # of the parameters before this step
            log.write(json.dumps({"name": name, **layer, "loss": float(loss)}) + "\n")
            for key, value in layer.items():
                if value is not None and key != "step":
                    board.add_scalar(f"{name}/{key}", value, layer["step"])
        log.flush()
        print(f"step {step:>4}  loss {float(loss):.4f}")

print("\nThe distance of each layer from equilibrium, nats per connection (0.163 is an untrained Gaussian layer):\n")
lines = [json.loads(line) for line in (options.out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
for name in dict.fromkeys(line["name"] for line in lines):
    own = [line for line in lines if line["name"] == name]
    print(f"  {name:<10} {own[0]['kl_nats']:.4f} at step {own[0]['step']}  →  {own[-1]['kl_nats']:.4f}", end="")
    print(f" at step {own[-1]['step']}")
print(f"\nLog, events and checkpoints: {options.out}")

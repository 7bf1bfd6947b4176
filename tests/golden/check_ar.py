"""How the cases of the autoregressive models are compared."""

from __future__ import annotations

import torch

from losses.ar import next_token_loss
from networks.ar.config import GPTConfig, TokenSamplingConfig
from networks.ar.gpt import GPT
from networks.ar.sampling import generate_tokens, token_probabilities
from tests.golden.cases import Case, fill

IGNORED = ("cls_token_num",)  # always one


def filled_gpt(facts: dict) -> GPT:
    """The network of a case with weights by the fill rule; its state dict must have the listed names and shapes."""
    given = {name: value for name, value in facts["config"].items() if name not in IGNORED and value is not None}
    assert facts["config"].get("cls_token_num", 1) == 1
    network = GPT(GPTConfig(**given))
    own = network.state_dict()
    listed = {name: shape for name, (shape, _) in facts["state_dict"].items()}
    assert {name: list(value.shape) for name, value in own.items()} == listed
    network.load_state_dict({name: fill(name, shape) for name, shape in listed.items()})
    return network


def check_gpt(case: Case) -> None:
    """Rotary table; logits, loss and gradients of training; logits of both classes and guided; greedy tokens."""
    network = filled_gpt(case.facts)
    tokens, labels = case.tensors["idx"].long(), case.tensors["cond"].long()
    if "rope_table" in case.tensors:
        case.check("rope_table", network.rope)
    logits = network.train()(tokens[:, :-1], labels)
    loss = next_token_loss(logits, tokens)
    loss.backward()
    gradients = {f"grad_norm/{name}": p.grad.norm() for name, p in network.named_parameters()}
    computed = {"train_logits": logits, "train_loss": loss, **gradients}
    network.eval()
    with torch.no_grad():
        conditional = computed["eval_logits_full"] = network(tokens[:, :-1], labels)
        if network.config.class_dropout_prob > 0:
            null = torch.full_like(labels, network.null_label)
            unconditional = computed["eval_logits_null"] = network(tokens[:, :-1], null)
            for name in case.tensors:
                if name.startswith("cfg_logits_s"):
                    scale = float(name.removeprefix("cfg_logits_s"))
                    computed[name] = unconditional + scale * (conditional - unconditional)
    for name, options in case.facts.get("runs", {}).items():
        uniform = torch.zeros(len(labels), network.config.block_size, dtype=torch.float64)
        found = generate_tokens(network, labels, uniform, TokenSamplingConfig(**options))
        computed[f"greedy/{name}"] = found.to(case.tensors[f"greedy/{name}"].dtype)
    for name in case.tensors:
        if name not in ("idx", "cond", "rope_table"):
            case.check(name, computed[name])


def check_sampling(case: Case) -> None:
    """Filtered distributions of the last logits, and their likeliest token."""
    last = case.tensors["logits"][:, -1]
    for run, options in case.facts["runs"].items():
        probabilities = token_probabilities(last, **options)
        case.check(f"probs_{run}", probabilities)
        case.check(f"argmax_{run}", probabilities.argmax(-1, keepdim=True))
    if "tie_logits" in case.tensors:
        case.check("tie_probs_top2", token_probabilities(case.tensors["tie_logits"][:, -1], top_k=2))
    left = {name for name in case.tensors if not name.endswith("logits")} - case.checked
    assert not left, f"stored, but not compared: {sorted(left)}"

#!/usr/bin/env python3
"""The study's XS model in PyTorch, as a control of docs/comparison.md: same sizes, initial distribution, optimizer, schedule and shards; full attention
by scaled_dot_product_attention, windows by FlexAttention. Not the same: the order of the data (chunks of T tokens in a random order, an epoch at a time, the same for
all seeds), the initial weights, the residual stream (fp32 under autocast, bf16 in sieve), and documents within a chunk see each other (one chunk of 35 holds two). Evaluated as the study does: every book alone, in chunks of T tokens.
  novels_torch.py DATA [--window 0,128,1024] [--seeds 1,2] [--tokens 80000000] [--out FILE]        DATA: the folder of scripts/prepare_novels.sh; needs torch, h5py
A window of 0 is full attention. One line of JSON a training."""
import argparse
import glob
import json
import math
import time

import h5py
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("--window", default="0,128,1024")
parser.add_argument("--seeds", default="1")
parser.add_argument("--tokens", type=int, default=80_000_000)
parser.add_argument("--T", type=int, default=4096)
parser.add_argument("--batch", type=int, default=65536, help="tokens an update")
parser.add_argument("--lr", type=float, default=2e-3)
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--width", type=int, default=384)
parser.add_argument("--vocab", type=int, default=8192)
parser.add_argument("--eager", action="store_true", help="no torch.compile")
parser.add_argument("--out")
a = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
T, C, L, D = a.T, a.width, a.layers, 64
H, FF = C // D, -(-8 * C // 3 // 64) * 64


def shards(split):
    """(tokens, offsets of documents) of a split."""
    tokens, offsets = [], [0]
    for path in sorted(glob.glob(f"{a.data}/{split}/*.h5")):
        with h5py.File(path) as file:
            tokens.append(file["tokens"][:])
            offsets += [int(x) + offsets[-1] for x in np.diff(file["document_offsets"][:].astype(np.int64)).cumsum()]
    return torch.from_numpy(np.concatenate(tokens).astype(np.int64)), offsets


def rotary():
    angles = torch.outer(torch.arange(T, device=device).float(), 10000.0 ** (-torch.arange(0, D, 2, device=device).float() / D))
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):  # (B, H, T, D)
    low, high = x.float().chunk(2, -1)
    n = x.shape[-2]
    return torch.cat((low * cos[:n] - high * sin[:n], high * cos[:n] + low * sin[:n]), -1).type_as(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(C, eps=1e-5), nn.RMSNorm(C, eps=1e-5)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 2 * FF, bias=False), nn.Linear(FF, C, bias=False)

    def forward(self, x, attend, cos, sin):
        q, k, v = (t.view(*x.shape[:2], H, D).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, 2))
        x = x + self.out(attend(rotate(q, cos, sin), rotate(k, cos, sin), v).transpose(1, 2).reshape_as(x))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(a.vocab, C), nn.RMSNorm(C, eps=1e-5)
        self.blocks = nn.ModuleList(Block() for _ in range(L))
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, 0, 0.02 / (math.sqrt(2 * L) if name.endswith(("out.weight", "down.weight")) else 1))

    def forward(self, tokens, targets, attend, cos, sin):
        """The sum of all targets' losses; targets of -1 count nothing."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, attend, cos, sin)
        logits = F.linear(self.norm(x), self.embedding.weight.to(x.dtype))
        return F.cross_entropy(logits.float().view(-1, a.vocab), targets.view(-1), ignore_index=-1, reduction="sum")


def attention(window):
    if window == 0:
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if device == "cpu":  # FlexAttention has no backward there
        seen = torch.ones(T, T, dtype=torch.bool).tril().triu(1 - window)
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < window), None, None, T, T, device=device)
    return lambda q, k, v: flex_attention(q, k, v, block_mask=mask)


@torch.no_grad()
def evaluate(run, split):
    """Mean loss of a split's targets, books apart, and their number."""
    (tokens, offsets), total, count = shards(split), 0.0, 0
    windows = [(begin, min(begin + T, end - 1)) for start, end in zip(offsets, offsets[1:]) for begin in range(start, end - 1, T)]
    for at in range(0, len(windows), 8):
        x, y = torch.zeros(8, T, dtype=torch.long), torch.full((8, T), -1)
        for row, (begin, end) in enumerate(windows[at : at + 8]):
            x[row, : end - begin], y[row, : end - begin] = tokens[begin:end], tokens[begin + 1 : end + 1]
            count += end - begin
        total += run(x.to(device), y.to(device)).item()
    return total / count, count


def train(window, seed):
    torch.manual_seed(seed)
    torch.compiler.reset()
    model, attend, (cos, sin) = Model().to(device), attention(window), rotary()
    forward = model if a.eager else torch.compile(model, dynamic=False)

    def run(x, y):
        with torch.autocast(device, torch.bfloat16):
            return forward(x, y, attend, cos, sin)

    decayed, plain = ([p for p in model.parameters() if (p.dim() == 2) == two] for two in (True, False))
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=a.lr, betas=(0.9, 0.95), fused=device == "cuda")
    tokens, _ = shards("train")
    chunks, rows, steps, warmup, least = (len(tokens) - 1) // T, a.batch // T, -(-a.tokens // a.batch), 100, 1e-4
    assert a.batch % T == 0 and tokens.max() < a.vocab, "--batch must be a multiple of --T, --vocab that of the shards"
    shuffle = torch.Generator().manual_seed(0)
    order, begin = torch.cat([torch.randperm(chunks, generator=shuffle) for _ in range(steps * rows // chunks + 1)]) * T, time.time()
    for step in range(steps):
        rate = a.lr * (step + 1) / warmup if step < warmup else least + (a.lr - least) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = torch.stack([tokens[i : i + T + 1] for i in order[step * rows : (step + 1) * rows]]).to(device, non_blocking=True)
        loss = run(batch[:, :-1].contiguous(), batch[:, 1:].contiguous()) / (rows * T)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            print(f"window {window} seed {seed} step {step} loss {loss.item():.4f} after {time.time() - begin:.0f} s", flush=True)
    result = {"window": window, "seed": seed, "updates": steps, "tokens": steps * a.batch, "lr": a.lr, "T": T, "parameters": sum(p.numel() for p in model.parameters()), "train_seconds": round(time.time() - begin, 1)}
    for split in ("val", "test"):
        loss, count = evaluate(run, split)
        result[split] = {"loss": round(loss, 4), "targets": count}
    result.update(torch=torch.__version__, device=torch.cuda.get_device_name() if device == "cuda" else "cpu")
    return result


torch.set_float32_matmul_precision("high")
for seed in map(int, a.seeds.split(",")):
    for window in map(int, a.window.split(",")):
        line = json.dumps(train(window, seed))
        print(line, flush=True)
        if a.out:
            with open(a.out, "a", encoding="utf-8") as file:
                file.write(line + "\n")

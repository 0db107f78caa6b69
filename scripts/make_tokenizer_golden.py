#!/usr/bin/env python3
"""Golden vectors for the tokenizers, made by Hugging Face's `tokenizers`, which is the oracle.

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install tokenizers
    /tmp/golden/bin/python scripts/make_tokenizer_golden.py            # writes tests/golden/tokenizers/*.json
    /tmp/golden/bin/python scripts/make_tokenizer_golden.py --check FILE   # FILE: a tokenizer.json that sieve wrote from the training texts;
                                                                           # must load here and give the ids of gpt2_style.json

gpt2_style: trained, GPT-2's split, merges as "a b" strings.  neox_style: NFC, runs of spaces as added tokens, special tokens first.
llama3_style: its Split regex, ignore_merges, a token that no merge makes, merges as pairs.
"""
import json
import pathlib
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "tokenizers"
LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TRAINING = [
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
    "it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of "
    "Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing "
    "before us, we were all going direct to Heaven, we were all going direct the other way.\n",
    "template <class T>\nstruct vector {\n  using value_type = T;\n  T* begin() { return begin_; }\n  T* end() { return end_; }\n"
    "  std::size_t size() const { return static_cast<std::size_t>(end_ - begin_); }\n\n private:\n  T* begin_;\n  T* end_;\n};\n",
    "don't can't won't it's he's she's we're they're I'm you'll they'd DON'T IT'S\n\n\n   indented\tand tabbed   \n",
    "Ünïcödé naïve café façade Straße größer 東京は日本の首都です。東京 日本 привет мир, мир привет! 2023 2024 1999 12345 ½ ² Ⅷ\n",
    "aaaa aaaaa aaaaaaaa abab ababab abcabcabc =-=-=-=-=-= ------ ====== ...... 🙂🙂 🙂\n",
]
TEXTS = TRAINING + [
    "", " ", "  ", "\n", "\n\n", " \n ", "\t\t\tx", "a", "a b", "a  b", "a   b", "trailing   ", "\r\n\r\n text\r\n",
    "<|endoftext|>", "before<|endoftext|>after", "<|endoftext|", "<|padding|>",
    "I'll say it's what they've had: 'twas 'Tis 'S 'Re 'LL",
    "1 12 123 1234 12345 1234567 3.14159 1e-9 0x7f ٣٤٥ ൧൨",
    "x" + " " * 2 + "y" + " " * 5 + "z" + " " * 24 + "w" + " " * 31 + "end", " " * 60,
    "Zanzibar Zanzibar, Zanzibars",
    "e\u0301 \u00e9 A\u030a \u212b \u1100\u1161\u11a8 \uac01 \u0958 o\u0302\u0323",
    "\u00a0non\u00a0breaking\u2003em\u3000ideographic\u0085next\u2028line\u180evowel\u200bzero\ufeffbom",
    "x \u180e\u180e\n\u180e!\u180e", "\u0085\u0085 \u00a0\u2028x",
    "mixed привет世界🙂👩‍👩‍👧‍👦🇫🇷 ﷺ ﬁ ſ K", "\x00\x01\x7f control", "a\u0300\u0301\u0302b", "tab\tnew\nform\fvert\vend",
    "wordwithoutanyspaces" * 40, "!?" * 50, "\u4e00" * 33, "if (x<=10&&y!=20) {\n\treturn a[i]->b;\n}\n",
]


def base(trainer_vocab, specials, normalizer=None, pre=None):
    t = Tokenizer(models.BPE())
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TRAINING, trainers.BpeTrainer(
        vocab_size=trainer_vocab, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials, show_progress=False))
    return t


def make():
    gpt2 = base(400, [])
    gpt2.add_special_tokens(["<|endoftext|>"])
    gpt2 = json.loads(gpt2.to_str())
    gpt2["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in gpt2["model"]["merges"]]

    neox = base(380, ["<|endoftext|>", "<|padding|>"], normalizers.NFC())
    neox.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    neox = json.loads(neox.to_str())

    llama = base(390, [], pre=pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    llama.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    llama.post_processor = processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", llama.token_to_id("<|begin_of_text|>"))])])
    llama = json.loads(llama.to_str())
    llama["model"]["ignore_merges"] = True
    llama["model"]["vocab"]["ĠZanzibar"] = llama["added_tokens"][-1]["id"] + 1
    llama["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in llama["model"]["merges"]]
    return {"gpt2_style": gpt2, "neox_style": neox, "llama3_style": llama}


def ids(tokenizer, text, parse):
    tokenizer.encode_special_tokens = not parse
    return tokenizer.encode(text, add_special_tokens=False).ids


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        ours = Tokenizer.from_file(sys.argv[2])
        theirs = Tokenizer.from_file(str(GOLDEN / "gpt2_style.json"))
        bad = [t for t in TEXTS for parse in (False, True) if ids(ours, t, parse) != ids(theirs, t, parse)]
        sys.exit(f"ids differ for {bad!r}" if bad else print(f"{sys.argv[2]}: {len(TEXTS)} texts agree") or 0)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    loaded = {}
    for name, content in make().items():
        path = GOLDEN / f"{name}.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        loaded[name] = Tokenizer.from_file(str(path))
    cases = []
    for text in TEXTS:
        case = {"text": text}
        for name, t in loaded.items():
            case[name] = {"text": ids(t, text, False), "parse": ids(t, text, True)}
            if not t.normalizer:  # bytes of the pieces of the split: merges rarely show where the borders are
                spans = t.pre_tokenizer.pre_tokenize_str(text)
                case[name]["pieces"] = [len(text[a:b].encode()) for _, (a, b) in spans]
        cases.append(case)
    lines = ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases)
    (GOLDEN / "vectors.json").write_text(
        '{"training": ' + json.dumps(TRAINING, ensure_ascii=True) + ',\n"cases": [\n' + lines + "\n]}\n", encoding="utf-8")
    print(f"{len(cases)} texts, {len(loaded)} tokenizers -> {GOLDEN}")


if __name__ == "__main__":
    main()

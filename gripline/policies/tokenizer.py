"""Text to token ids: the policy's only way to learn which task it is in.

Every text begins with a beginning-of-text id, so that an empty instruction is a legal text, and is padded to a fixed
length, so that shapes are stable. Files are `tokenizer.json` as the `tokenizers` library writes it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from gripline.errors import UserError
from gripline.policies.architecture import Text

TOKENIZER_FILE = "tokenizer.json"
_SPECIAL = ("<pad>", "<unk>", "<s>")


class TextEncoder:
    """Instructions in, padded ids out.

    Example: `TextEncoder(word_tokenizer(["open the drawer"]), Text(max_tokens=6)).encode(["Open the window!"])` gives
    ids `[[2, 4, 5, 1, 0, 0]]`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, text: Text) -> None:
        self._tokenizer = tokenizer
        self._text = text

    @classmethod
    def load(cls, directory: Path, text: Text) -> Self:
        """From a checkpoint directory. Raises UserError where the file is missing or not a tokenizer."""
        path = directory / TOKENIZER_FILE
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), text)
        except Exception as error:  # the library raises bare Exception, whatever is wrong with the file
            raise UserError(str(path), "", f"not a readable tokenizer: {error}", "copy the checkpoint again") from error

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into a checkpoint directory."""
        (directory / TOKENIZER_FILE).write_text(self._tokenizer.to_str(pretty=True), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`ids_BL` int64 and `mask_BL` bool. Raises UserError on an instruction of more than `max_tokens`."""
        ids_BL = np.full((len(instructions), self._text.max_tokens), self._text.pad_id, np.int64)
        mask_BL = np.zeros(ids_BL.shape, np.bool_)
        prompts = [self._text.prompt.format(instruction=instruction.lower()) for instruction in instructions]
        for row, encoding in enumerate(self._tokenizer.encode_batch(prompts)):
            ids = list(encoding.ids)
            if self._text.final_id is not None and ids[-1] != self._text.final_id:
                ids.append(self._text.final_id)
            if len(ids) > self._text.max_tokens:
                # Cutting it short would silently change the task.
                problem = f"{len(ids)} tokens, but the policy reads {self._text.max_tokens}"
                raise UserError(f"instruction {instructions[row]!r}", "", problem, "shorten the instruction")
            ids_BL[row, : len(ids)] = ids
            mask_BL[row, : len(ids)] = True
        return ids_BL, mask_BL


def word_tokenizer(corpus: Iterable[str]) -> tokenizers.Tokenizer:
    """One id per lower-case word of the corpus, alphabetically: equal corpora give equal ids. Other words are <unk>."""
    normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[^a-z0-9]+"), " ")])
    words = sorted({word for text in corpus for word in normalizer.normalize_str(text).split()})
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer

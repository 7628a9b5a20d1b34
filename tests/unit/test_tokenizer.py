"""The word tokenizer: deterministic ids, unknown words, fixed lengths, and its file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gripline.errors import UserError
from gripline.policies.architecture import Text
from gripline.policies.tokenizer import TextEncoder, word_tokenizer

CORPUS = ["open the drawer", "open the faucet"]
TEXT = Text(max_tokens=6)


def encoder(corpus: list[str] = CORPUS) -> TextEncoder:
    return TextEncoder(word_tokenizer(corpus), TEXT)


def test_ids_and_mask() -> None:
    """Catches ids that move, punctuation that makes words unknown, and a mask that is off by one."""
    ids, mask = encoder().encode(["Open the, drawer!", "open the window", ""])
    # 0 pad, 1 unknown, 2 begin, then alphabetically: drawer 3, faucet 4, open 5, the 6
    assert ids.tolist() == [[2, 5, 6, 3, 0, 0], [2, 5, 6, 1, 0, 0], [2, 0, 0, 0, 0, 0]]
    assert mask.sum(1).tolist() == [4, 4, 1]
    assert ids.dtype == np.int64 and mask.dtype == np.bool_


def test_equal_corpora_give_equal_ids() -> None:
    """Catches a vocabulary in the order of a set or of the tasks."""
    texts = ["open the faucet", "the drawer"]
    first, second = (encoder(corpus).encode(texts)[0] for corpus in (CORPUS, CORPUS[::-1] + CORPUS))
    np.testing.assert_array_equal(first, second)


@given(st.text(max_size=12))
def test_any_text_is_either_encoded_or_refused(text: str) -> None:
    """Catches texts (emoji, braces, blanks) that crash or change the shape."""
    try:
        ids, mask = encoder().encode([text])
    except UserError:
        return
    assert ids.shape == mask.shape == (1, TEXT.max_tokens) and ids[0, 0] == 2 and ids.max() < encoder().vocab_size


def test_a_long_instruction_is_refused_in_one_line() -> None:
    """Catches an instruction cut short: its end may be what tells the tasks apart."""
    with pytest.raises(UserError, match="7 tokens, but the policy reads 6") as caught:
        encoder().encode(["open the drawer", "open the drawer and the faucet"])
    assert "and the faucet" in str(caught.value)


def test_file_round_trip(tmp_path: Path) -> None:
    """Catches a part of the tokenizer that is not in its file."""
    encoder().save(tmp_path)
    loaded = TextEncoder.load(tmp_path, TEXT)
    texts = ["Open THE drawer", "shut it"]
    np.testing.assert_array_equal(loaded.encode(texts)[0], encoder().encode(texts)[0])


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    """Catches a traceback on a missing or torn tokenizer."""
    for content in (None, "{"):
        if content is not None:
            (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match=r"tokenizer\.json: not a readable tokenizer"):
            TextEncoder.load(tmp_path, TEXT)

"""Cleaning of docstrings: what stays is prose, what goes is code and markup."""

import pytest

from harness.data.prose import is_prose, paragraphs, skeleton

NUMPY_STYLE = """Compute the mean of the array along an axis.

    Parameters
    ----------
    a : array_like, shape (N, L)
        The numbers whose mean is wanted by the caller.
    axis : int, optional
        Axis along which the means are computed.

    Returns
    -------
    float
        The mean of the numbers that were given.

    See Also
    --------
    median : The middle of all the numbers in the array.

    Examples
    --------
    The mean of two numbers is half of their sum:

    >>> mean([1, 3])
    2.0

    .. math:: m = \\sum_i a_i

    .. note::
        The result is a float even where the numbers are not.

    +-----+-----+
    | one | two |
    +-----+-----+
    """

GOOGLE_STYLE = """Open a file and return what is in it.

    Args:
        path (str, *optional*): The path of the file that is opened,
            which may be relative to the folder.
        mode: the way in which the file is opened

    Returns:
        `str`: The text of the file with its line ends.

    Usage::

        text = read("the file that is on the disk")

    ```python
    this is the code that is not to be kept
    ```
    """


def test_numpy_style_keeps_descriptions_only():
    assert paragraphs(NUMPY_STYLE) == [
        "Compute the mean of the array along an axis.",
        "The numbers whose mean is wanted by the caller.",
        "Axis along which the means are computed.",
        "The mean of the numbers that were given.",
        "The mean of two numbers is half of their sum:",
        "The result is a float even where the numbers are not.",
    ]


def test_google_style_keeps_descriptions_only():
    assert paragraphs(GOOGLE_STYLE) == [
        "Open a file and return what is in it.",
        "The path of the file that is opened, which may be relative to the folder.",
        "the way in which the file is opened",
        "The text of the file with its line ends.",
    ]


def test_fields_lists_and_inline_markup():
    found = paragraphs(
        """Return the ``name`` of the :class:`~pkg.Thing` that is *open* in the `manual <http://x.org>`_.

        :param str name: the name of the thing to be found
        :type name: the type that is never to be kept
        - an item of the list that is short
        - another item of the list \u2014 no, of
          two lines
        """
    )
    assert found == [
        "Return the name of the Thing that is open in the manual.".replace("Thing", "pkg.Thing"),
        "the name of the thing to be found",
        "an item of the list that is short",
        "another item of the list - no, of two lines",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "too short to keep",
        "x = [1, 2, 3] + [4, 5] * 7 ** 2",
        "alpha beta gamma delta epsilon zeta eta",  # no function word
        "See http://example.org for all of the details of it",
        "the na\u00efve way of doing this is the best",
        "The value {name} is put in the place of it",
        "This is the license of the file that you read",
        "- a dash is not the start of a sentence",
    ],
)
def test_not_prose(text):
    assert not is_prose(text)


def test_prose_with_a_name_or_two():
    assert is_prose("If axis is None, the DataFrame is copied before it is sorted.")


def test_skeleton_masks_names_and_numbers_but_not_words():
    assert skeleton("Constructs the BERT tokenizer of size 128.") == skeleton("Constructs the T5 tokenizer of size 64.")
    assert skeleton("Constructs the BERT tokenizer.") != skeleton("Constructs the BERT model.")
    assert skeleton("The model") == "the model"

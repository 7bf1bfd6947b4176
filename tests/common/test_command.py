import errno

import pytest

from common.command import run_command
from common.errors import ConfigError


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "text"),
    [
        (lambda: None, None, ""),
        (lambda: 1, 1, ""),
        (raising(ConfigError("a.yaml: found 3, expected 4.")), 2, "error: a.yaml: found 3, expected 4.\n"),
        (raising(OSError(errno.ENOSPC, "No space left", "a.png")), 2, "error: a.png: No space left\n"),
        (raising(NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b")), 2, "error: a/b: Not a directory\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_code_and_message_of_a_command(main, code, text, capsys):
    with pytest.raises(SystemExit) as exit:
        run_command(main)
    assert exit.value.code == code
    assert capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        run_command(raising(FileNotFoundError(errno.ENOENT, "No such file", "a.png")))

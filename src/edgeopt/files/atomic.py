"""Writing a file so that it is there whole, or not at all.

The bytes go to a temporary file in the same folder; when they are complete they are forced to the
disk and the file takes its name by a rename, which the file system does in one step. Whatever goes
wrong before that (an exception, Ctrl-C, SIGTERM, a full disk) leaves what was there before; a
kill -9 or a power cut can leave the hidden temporary file behind, never half a file under the name.

Files that name one another (an ONNX model its data file) are written under their own names, in a
hidden folder: :func:`writing_group` with ``named``. A whole folder takes its name by one rename
too: :func:`writing_folder`; it never replaces one that holds something.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from edgeopt.errors import OutputError
from edgeopt.files import leftovers

__all__ = ["checked_folder", "checked_output", "writing", "writing_folder", "writing_group"]

#: What the operating system may answer to a write, and what to do about it.
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere with -o",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere with -o",
    errno.EFBIG: "the file grew past the size limit of this file system or process",
    errno.EROFS: "the file system is read-only; write elsewhere with -o",
    errno.EACCES: "permission denied; write elsewhere with -o",
    errno.EPERM: "not permitted by the file system; write elsewhere with -o",
    errno.ENOENT: "the folder does not exist (any more); make it first",
    errno.ENOTDIR: "the folder does not exist (any more); make it first",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.EIO: "the device reports a write error",
    errno.EEXIST: "exists; give another name with -o",
    errno.ENOTEMPTY: "is a folder that holds files; remove it, or give another name with -o",
    errno.EXDEV: "the file system cannot rename within this folder",
    errno.EMLINK: "the file system allows no further link",
    errno.ETXTBSY: "is in use; write elsewhere with -o",
}


def checked_output(path: str | os.PathLike[str], sources: Iterable[Path] = ()) -> Path:
    """The file that writing to ``path`` will make or replace, symbolic links followed.

    Raises OutputError when its folder is missing, no folder or read-only; when it is there and no
    regular file; and when it is one of ``sources`` (by identity: also through a symbolic or a hard
    link) or an existing file inside one of them that is a folder. Looks only; writes nothing.
    """
    asked = Path(path)
    with _output_errors(asked):
        target = Path(os.path.realpath(asked)) if asked.is_symlink() else asked.absolute()
        folder = target.parent
        if target.is_symlink():
            raise OutputError(f"{asked}: is a link that leads to itself; give another name with -o")
        if not target.name:
            raise OutputError(f"{asked}: is a folder; give a file name with -o")
        if not folder.exists():
            raise OutputError(f"{asked}: the folder {folder} does not exist; make it first")
        if not folder.is_dir():
            raise OutputError(f"{asked}: {folder} is no folder; give another name with -o")
        status = target.stat() if target.exists() else None
        if status is not None and stat.S_ISDIR(status.st_mode):
            raise OutputError(f"{asked}: is a folder; give a file name with -o")
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise OutputError(f"{asked}: is there and no regular file; give another name with -o")
        if status is not None:
            for source in sources:
                _require_not_source(asked, target, source)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{asked}: the folder {folder} is read-only; write elsewhere with -o")
    return target


def checked_folder(path: str | os.PathLike[str], sources: Iterable[Path] = ()) -> Path:
    """The folder that :func:`writing_folder` will make, symbolic links followed.

    Raises OutputError when the name is taken (an empty folder does not take it: what a folder
    holds is never replaced), when it lies in one of ``sources``, and when the folder around it is
    missing or read-only. Looks only; writes nothing.
    """
    asked = Path(path)
    with _output_errors(asked):
        target = Path(os.path.realpath(asked))
        parent = target.parent
        for source in sources:
            if source.is_dir() and target.is_relative_to(os.path.realpath(source)):
                raise OutputError(
                    f"{asked}: is or lies in the source folder {source}; give another name with -o"
                )
        if target.is_dir() and any(target.iterdir()):
            raise OutputError(
                f"{asked}: is a folder that holds files; remove it, or give another name with -o"
            )
        if target.exists() and not target.is_dir():
            raise OutputError(f"{asked}: is there and no folder; give another name with -o")
        if not parent.is_dir():
            raise OutputError(f"{asked}: the folder {parent} does not exist; make it first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{asked}: the folder {parent} is read-only; write elsewhere with -o")
    return target


@contextmanager
def writing_folder(
    path: str | os.PathLike[str], *, source_paths: Iterable[Path] = ()
) -> Iterator[Path]:
    """Write the folder ``path`` whole or not at all: ``with writing_folder(path) as folder: ...``.

    Yields an empty hidden folder beside it. A clean exit forces every file in it to the disk and
    renames it to ``path``; any exception, KeyboardInterrupt and SIGTERM included, removes it with
    all that it holds.

    Raises OutputError for what :func:`checked_folder` refuses, and for a disk that is full,
    read-only or failing.
    """
    target = checked_folder(path, tuple(source_paths))
    hidden = _hidden(target, "")
    with ExitStack() as stack:
        stack.enter_context(_output_errors(target, hidden))
        stack.enter_context(_termination_raises())
        stack.callback(_remove_folder, hidden)
        hidden.mkdir()
        yield hidden
        for inside in sorted(hidden.rglob("*")):
            if inside.is_dir():
                _sync_folder(inside)
            else:
                _settle(inside, inside)
        _sync_folder(hidden)
        hidden.rename(target)
        _sync_folder(target.parent)


def _require_not_source(asked: Path, target: Path, source: Path) -> None:
    if source.is_dir():
        if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(source)):
            raise OutputError(
                f"{asked}: would replace a file of the source folder {source}; "
                "give another name with -o"
            )
    elif source.exists() and target.samefile(source):
        raise OutputError(f"{asked}: is the source itself ({source}); give another name with -o")


@contextmanager
def writing(
    path: str | os.PathLike[str], *, overwrite: bool = True, source_paths: Iterable[Path] = ()
) -> Iterator[Path]:
    """Write ``path`` whole or not at all: ``with writing(path) as temporary: ...``.

    Yields an empty temporary file in the same folder, with the same suffix. A clean exit forces it
    to the disk and renames it to ``path``, with the permissions of the file it replaces; any
    exception, KeyboardInterrupt and SIGTERM included, removes it and leaves ``path`` as it was.

    Raises OutputError for what :func:`checked_output` refuses, for a file that is there when
    ``overwrite`` is False, and for a disk that is full, read-only or failing.
    """
    with writing_group([path], overwrite=overwrite, source_paths=source_paths) as (temporary,):
        yield temporary


@contextmanager
def writing_group(
    paths: Sequence[str | os.PathLike[str]],
    *,
    overwrite: bool = True,
    source_paths: Iterable[Path] = (),
    named: bool = False,
) -> Iterator[tuple[Path, ...]]:
    """Like :func:`writing` for a file with sidecars: all take their names, or none does.

    Give the sidecars first and the main file last: it appears last, when all it points to is in
    place. If a rename fails, those before it are taken back. (No file system renames several files
    in one step: a power cut right between two renames can leave new sidecars beside the old main
    file.) A temporary file that the block removes is a sidecar that was not needed, and its name
    is left as it was.

    With ``named``, the temporary files have their final names, in a temporary folder inside the
    main file's: what the files say of one another is true already. All paths must be of one
    folder then.
    """
    sources = tuple(source_paths)
    targets = tuple(checked_output(path, sources) for path in paths)
    for path, target in zip(paths, targets, strict=True):
        if not overwrite and target.exists():
            raise OutputError(f"{os.fspath(path)}: exists; give another name with -o")
    if len(set(targets)) != len(targets):
        raise OutputError(f"{os.fspath(paths[-1])}: two outputs have this name; give each its own")
    with ExitStack() as stack:
        hidden = _hidden(targets[-1], "") if named else None
        stack.enter_context(_output_errors(targets[-1], hidden))
        stack.enter_context(_termination_raises())
        if hidden is not None:
            stack.callback(_remove_folder, hidden)
            hidden.mkdir()
        temporaries = tuple(_create(target, stack, hidden) for target in targets)
        yield temporaries
        pairs = [(t, target) for t, target in zip(temporaries, targets, strict=True) if t.exists()]
        for temporary, target in pairs:
            _settle(temporary, target)
        _publish(pairs, overwrite)


def _hidden(target: Path, suffix: str) -> Path:
    """A name beside ``target`` that nobody has; what killed runs left there is removed."""
    leftovers.clear(target.parent, ".", ".tmp")
    # The name is cut so that it fits wherever the target's own name does.
    stem = os.fsencode(target.stem)[:64].decode(errors="ignore")
    return target.with_name(f".{stem}.{leftovers.owned_name()}.tmp{suffix}")


def _create(target: Path, stack: ExitStack, folder: Path | None) -> Path:
    """An empty temporary file for ``target``; the umask applies, as to any new file."""
    temporary = folder / target.name if folder else _hidden(target, target.suffix[:16])
    # Before the file is made: an interrupt in between must find it removed.
    stack.callback(_remove, temporary)
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    return temporary


def _remove_folder(path: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def _settle(temporary: Path, target: Path) -> None:
    """Force the bytes to the disk, with the permissions of the file they are to replace."""
    if target.exists():
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(pairs: Sequence[tuple[Path, Path]], overwrite: bool) -> None:
    with ExitStack() as undo:
        for temporary, target in pairs[:-1]:
            if overwrite:
                undo.callback(_restore, target, _set_aside(target))
                _take_name(temporary, target, overwrite)
            else:
                _take_name(temporary, target, overwrite)
                undo.callback(_remove, target)
        for temporary, target in pairs[-1:]:
            _take_name(temporary, target, overwrite)
        undo.pop_all()
    for _, target in pairs[:-1]:
        _remove(_aside(target))
    for folder in {target.parent for _, target in pairs}:
        _sync_folder(folder)


def _take_name(temporary: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
    else:
        # Unlike a rename, a link fails where another process has taken the name meanwhile.
        os.link(temporary, target)
        temporary.unlink()


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{os.getpid()}.old")


def _set_aside(target: Path) -> Path | None:
    """A second name for the file that is about to be replaced, if there is one."""
    if not target.exists():
        return None
    aside = _aside(target)
    _remove(aside)
    try:
        os.link(target, aside)
    except OSError:
        # A file system without hard links: the old file is away for a moment, but not lost.
        target.replace(aside)
    return aside


def _restore(target: Path, aside: Path | None) -> None:
    if aside is None:
        _remove(target)
    else:
        aside.replace(target)
        # Where both are names of one file still, a rename does nothing.
        _remove(aside)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot sync a folder; the rename has happened all the same.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _output_errors(path: Path, hidden: Path | None = None) -> Iterator[None]:
    """Turn what the operating system says about writing ``path`` into a one-line OutputError.

    An OSError about a file elsewhere (read by the block, say) passes as it is; ``hidden`` is a
    folder whose files are temporary ones.
    """
    try:
        yield
    except OSError as error:
        folder = path.absolute().parent
        named = Path(error.filename).absolute() if isinstance(error.filename, str) else None
        elsewhere = named is not None and not (
            folder in (named, named.parent) or hidden in (named, *named.parents)
        )
        # A folder that is there is not what is missing: the current one may be, which others ask.
        other = error.errno == errno.ENOENT and named is None and folder.is_dir()
        if error.errno not in _REASONS or elsewhere or other:
            raise
        raise OutputError(f"{path}: {_REASONS[error.errno]}") from error


@contextmanager
def _termination_raises() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed.

    Only where they would end the process anyway (nobody handles them), and in the main thread, the
    only one that may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGTERM, signal.SIGHUP)
    taken = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)

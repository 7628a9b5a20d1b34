"""Tiny graphs with the parameters of a local run, whose steps do what a test needs: end well, fail, crash, or hang."""

from kfp import dsl


@dsl.component(base_image="python", install_kfp_package=False)
def work(store_uri: str, run_name: str, told: dsl.Output[dsl.Dataset]) -> None:
    """Two stages' worth of events, and a marker per execution, so that a cached repetition shows."""
    import os

    from gripline.progress import emit, stage

    with stage("first"):
        with open(os.path.join(store_uri, run_name, "executions"), "a", encoding="utf-8") as marks:
            marks.write("first\n")
        for done in range(1, 4):
            emit("first", "advance", done=done, total=3, metrics={"loss": 1.0 / done})
        emit("first", "warn", text="this is only a test")
        with open(told.path, "w", encoding="utf-8") as out:
            out.write("ok")


@dsl.component(base_image="python", install_kfp_package=False)
def conclude(store_uri: str, run_name: str) -> None:
    """Leave the summary and context that the real last and first stages leave; the test names them."""
    import os
    import shutil

    from gripline.progress import stage

    with stage("second"):
        folder = os.path.join(store_uri, run_name)
        for name in ("summary.json", "context.json"):
            shutil.copy(os.path.join(os.environ["FAKE_RESULTS"], name), os.path.join(folder, name))


@dsl.component(base_image="python", install_kfp_package=False)
def refuse() -> None:
    """A mistake of the user's."""
    from gripline.errors import UserError
    from gripline.progress import stage

    with stage("second"):
        raise UserError("somewhere.yaml", "rl.lr", "is not to my liking", "try another")


@dsl.component(base_image="python", install_kfp_package=False)
def crash() -> None:
    """A mistake of ours."""
    from gripline.progress import stage

    with stage("second"):
        raise RuntimeError("the flux capacitor is empty")


@dsl.component(base_image="python", install_kfp_package=False)
def vanish() -> None:
    """Killed without a word, as by the kernel when memory runs out."""
    import os
    import signal

    from gripline.progress import emit

    emit("second", "start")
    os.kill(os.getpid(), signal.SIGKILL)


@dsl.component(base_image="python", install_kfp_package=False)
def hang(store_uri: str, run_name: str) -> None:
    """Start a daemon that leaves the session, loses its parent and ignores SIGTERM, as Ray's may; then hang."""
    import os
    import subprocess
    import sys
    import time

    from gripline.progress import stage

    with stage("second"):
        daemon = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        launcher = "import sys; from subprocess import DEVNULL, Popen; "
        launcher += "print(Popen(sys.argv[1:], start_new_session=True, stdout=DEVNULL).pid)"
        command = [sys.executable, "-c", launcher, sys.executable, "-c", daemon]
        pid = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        with open(os.path.join(store_uri, run_name, "pids"), "w", encoding="utf-8") as out:
            out.write(f"{os.getpid()} {pid}")
        time.sleep(300)


@dsl.pipeline
def succeeds(profile: str, checkpoint_uri: str, store_uri: str, run_name: str) -> None:
    first = work(store_uri=store_uri, run_name=run_name)
    conclude(store_uri=store_uri, run_name=run_name).after(first).set_caching_options(False)


@dsl.pipeline
def refuses(profile: str, checkpoint_uri: str, store_uri: str, run_name: str) -> None:
    first = work(store_uri=store_uri, run_name=run_name)
    refuse().after(first)


@dsl.pipeline
def crashes(profile: str, checkpoint_uri: str, store_uri: str, run_name: str) -> None:
    crash()


@dsl.pipeline
def vanishes(profile: str, checkpoint_uri: str, store_uri: str, run_name: str) -> None:
    vanish()


@dsl.pipeline
def hangs(profile: str, checkpoint_uri: str, store_uri: str, run_name: str) -> None:
    hang(store_uri=store_uri, run_name=run_name)

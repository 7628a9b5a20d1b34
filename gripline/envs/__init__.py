"""Environments: `make_env` builds the simulator that a configuration names. Importing this loads no simulator."""

import importlib

from gripline.config import EnvConfig
from gripline.envs.gl import VARIABLE, choose_renderer
from gripline.envs.suites import suite_info, task_info
from gripline.types import Env


def make_env(config: EnvConfig) -> Env:
    """Build the environment of `config.suite`; its simulators are built when a task is first reset.

    Raises UserError for an unknown suite or task, a missing package and a machine without a working renderer.
    """
    for task in config.tasks:
        task_info(config.suite, task)
    module_name, class_name = suite_info(config.suite).adapter.split(":")
    env: Env = getattr(importlib.import_module(module_name), class_name)(config)
    return env


def prepare(config: EnvConfig) -> dict[str, str]:
    """Settle once what each worker would otherwise find out for itself; returns the environment variables that say so.

    Raises UserError if nothing can draw.
    """
    return {VARIABLE: choose_renderer(config.renderer)} if suite_info(config.suite).needs_gl else {}

"""What each argument of the server changes; ``test_options`` holds it to it."""

from __future__ import annotations

from types import SimpleNamespace

from options_inference import MODEL, device, memory, model
from programs import Program

import inference.soak
import unclip.app.serve

# A table from here on, laid out by hand.
# fmt: off
SERVE = Program(
    unclip.app.serve.main, {"api_key": ["--api-key", "secret"]},
    {"unclip.app.serve.load": MODEL, "unclip.app.server.application.application": "an application",
     "unclip.app.server.application.server_of": SimpleNamespace(run=lambda: None)},
    {"model": (["--model", "other", "--model", "some/more"],
               {"load.name_or_path": "other", "load'.name_or_path": "some/more",
                "load'.dtype": "float32", "load'.offload": False,
                "application.models": {"other": MODEL, "more": MODEL}}),
     "host": (["--host", "0.0.0.0"], {"application.settings.host": "0.0.0.0"}),
     "port": (["--port", "0"], {"server_of.port": 0}),
     "api_key": (["--api-key", "other"], {"application.settings.key": "other"}),
     "no_key": (["--no-key"], {"said": "unclip serve: there is a key, and --no-key; give one of them",
                               "load.name_or_path": None, "load.dtype": None, "load.offload": None,
                               "application.models": None, "application.settings.host": None,
                               "application.settings.key": None, "application.settings.max_queue": None,
                               "application.settings.max_batch": None, "application.settings.origins": None,
                               "application.settings.resize": None, "application.settings.log_prompts": None,
                               "server_of.app": None, "server_of.port": None}),
     "allow_origin": (["--allow-origin", "https://a.org", "--allow-origin", "http://b.org:80"],
                      {"application.settings.origins": ("https://a.org", "http://b.org:80")}),
     "max_queue": (["--max-queue", "3"], {"application.settings.max_queue": 3}),
     "max_batch": (["--max-batch", "5"], {"application.settings.max_batch": 5}),
     "resize": (["--resize"], {"application.settings.resize": True}),
     "log_prompts": (["--log-prompts"], {"application.settings.log_prompts": True}),
     **device("load"), **memory("load")},
    {"server_of.app": "an application"})
SOAK = Program(
    inference.soak.main, {"model": ["some"]},
    {"inference.soak.load": MODEL, "inference.soak.measure": ("soaked", (2.0, 3.0), 1),
     "inference.soak.table": "a table"},
    {"requests": (["--requests", "60"], {"measure.count": 60, "table.count": 60}),
     "clients": (["--clients", "3"], {"measure.clients": 3}),
     "leave": (["--leave", "0.5"], {"measure.leave": 0.5}),
     "max_batch": (["--max-batch", "2"], {"measure.batch": 2}),
     "steps": (["--steps", "5"], {"measure.options": {"steps": 5}}),
     **device("load"), **model(["other"])},
    {"measure.pipeline": MODEL, "table.soaked": "soaked", "table.alone": (2.0, 3.0), "table.wrong": 1})
# fmt: on
PROGRAMS = {"unclip/app/serve.py": [SERVE], "inference/soak.py": [SOAK]}

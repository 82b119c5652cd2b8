"""`import iotsim` costs nothing: no heavy module, no thread, no socket."""

import json
import subprocess
import sys

HEAVY = (
    "numpy", "pandas", "pydantic", "yaml", "orjson", "ipywidgets", "anywidget", "matplotlib",
    "pyarrow", "paho", "mqtt5", "amqtt", "tqdm", "asyncio", "socket", "ssl", "_socket",
    "threading", "multiprocessing", "concurrent", "logging", "IPython",
)
# Ours: the package, the registry, the errors. Theirs: typing and difflib with what they need.
MODULES_MAX = 50


def python(code):
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_no_library_thread_or_socket():
    loaded = json.loads(python(
        "before = set(sys.modules)\nimport iotsim\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before - {'json'})))"
    ))
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & set(HEAVY), roots & set(HEAVY)
    ours = [name for name in loaded if name.startswith("iotsim")]
    assert ours == ["iotsim", "iotsim.errors", "iotsim.registry"]


def test_import_loads_few_modules():
    count = int(python("before = set(sys.modules)\nimport iotsim\n"
                       "print(len(set(sys.modules) - before))"))
    assert count <= MODULES_MAX


def test_import_works_on_a_python_without_sockets():
    python(
        "for name in ('socket', '_socket', 'ssl', '_ssl', 'select', 'asyncio'):\n"
        "    sys.modules[name] = None\n"
        "import iotsim\nassert iotsim.__version__ and 'Fleet' in dir(iotsim)"
    )


def test_generate_and_verify_work_on_a_python_without_sockets(tmp_path):
    # What Pyodide has: no sockets, no processes. Offline work needs neither.
    python(
        "sys.modules.update({name: None for name in ('mqtt5', 'paho', 'amqtt', 'pyarrow')})\n"
        "from iotsim import Fleet, verify\n"
        "result = Fleet('p', seed=1).add('pump').generate('1m', progress=False)\n"
        f"assert verify(result.save({str(tmp_path / 'run.iotsim')!r}))\n"
    )


def test_the_first_command_does_not_load_pandas_on_the_loop():
    python(
        "import asyncio, threading\n"
        "on_loop = []\n"
        "def hook(event, given):\n"
        "    if event == 'import' and given[0] == 'pandas':\n"
        "        on_loop.append(threading.current_thread() is threading.main_thread())\n"
        "sys.addaudithook(hook)\n"
        "from iotsim import Fleet\n"
        "async def main():\n"
        "    run = Fleet('p', seed=1).add('pump').start()\n"
        "    await run.ready()\n"
        "    assert 'pandas' not in sys.modules\n"
        "    found = await run.command('reboot')\n"
        "    assert found['status'].tolist() == ['acknowledged']\n"
        "    await run.stop()\n"
        "asyncio.run(main())\n"
        "assert 'pandas' in sys.modules and True not in on_loop, on_loop\n"
    )

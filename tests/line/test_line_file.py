import socket
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adclick_edge.errors import ConfigError
from adclick_edge.line import line_file as module
from adclick_edge.line.config import Camera
from adclick_edge.line.curve import new_keys
from adclick_edge.line.line_file import example_line_file, read_line_file, state_folder

GOOD = """
[line]
bind = ["ipc:///run/adclick/line.ipc"]
[products.flange]
bundle = "flange.bundle"
[cameras.cam1]
product = "flange"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "flange.bundle").mkdir()
    (tmp_path / "flange.bundle" / "manifest.json").write_text("{}")
    (tmp_path / "gasket.zip").write_bytes(b"PK")
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "line.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> list[str]:
    """The problems, without the file's name that each line begins with."""
    path = written(folder, text)
    with pytest.raises(ConfigError) as error:
        read_line_file(path)
    lines = str(error.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def edited(*changes: tuple[str, str], more: str = "") -> str:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text + more


def bound_to(*endpoints: str) -> str:
    listed = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return edited(('["ipc:///run/adclick/line.ipc"]', f"[{listed}]"))


def test_paths_are_taken_from_the_folder_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = '[routing]\nspool = "/var/spool/frames"\n[shift]\nreports = "reports"'
    path = written(folder, edited(("ipc:///run/adclick/line.ipc", "ipc://run/line.ipc"), more=more))
    monkeypatch.chdir(folder)
    config = read_line_file(Path("line.toml"))
    assert config == read_line_file(path)
    assert config.line.state == folder / "state"
    assert config.line.bind == (f"ipc://{folder}/run/line.ipc",)
    assert config.security.keys == folder / "keys"
    assert config.products["flange"].bundle == folder / "flange.bundle"
    assert config.routing.spool == Path("/var/spool/frames")
    assert config.shift.reports == folder / "reports"
    assert config.cameras["cam1"] == Camera(product="flange")


def test_home_is_written_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/line")
    config = read_line_file(written(folder, edited(("[products", 'state = "~/state"\n[products'))))
    assert config.line.state == Path("/home/line/state")


def test_the_example_loads(folder: Path) -> None:
    text = example_line_file().replace("bundles/flange.bundle", "flange.bundle")
    config = read_line_file(written(folder, text))
    assert list(config.products) == ["flange"]
    assert list(config.cameras) == ["cam1"]


def test_the_example_names_every_key_and_its_true_default(folder: Path) -> None:
    example = example_line_file().replace("bundles/flange.bundle", "flange.bundle")
    bare = read_line_file(written(folder, example))
    lines = example.splitlines()
    keys = [
        i
        for i, line in enumerate(lines)
        if line.startswith("# ") and " = " in line and line[2:].split(" = ")[0].isidentifier()
    ]
    full: list[str] = []
    for i, line in enumerate(lines):
        full.append(line.removeprefix("# ") if i in keys and "(example)" not in lines[i - 1] else line)
    assert read_line_file(written(folder, "\n".join(full))) == bare
    everything = "\n".join(line.removeprefix("# ") if i in keys else line for i, line in enumerate(lines))
    read_line_file(written(folder, everything))
    raw = tomllib.loads(everything)
    tables: list[tuple[dict[str, Any], object]] = [(raw["products"]["flange"], bare.products["flange"])]
    tables.append((raw["cameras"]["cam1"], bare.cameras["cam1"]))
    for name in ("line", "limits", "security", "routing", "alarms", "shift"):
        tables.append((raw[name], getattr(bare, name)))
    for table, struct in tables:
        assert set(table) == {field.name for field in msgspec.structs.fields(type(struct))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("deadline_ms = -3", "[cameras.cam1] deadline_ms = -3: must be a number, at least 1 and at most 3600000"),
        ("deadline_ms = nan", "[cameras.cam1] deadline_ms = nan: must be a number, at least 1 and at most 3600000"),
        ('deadline_ms = "1"', '[cameras.cam1] deadline_ms = "1": must be a number, at least 1 and at most 3600000'),
        ("queue = 1.5", "[cameras.cam1] queue = 1.5: must be a whole number, at least 1 and at most 1024"),
        ("queue = true", "[cameras.cam1] queue = true: must be a whole number, at least 1 and at most 1024"),
        ("queue = 99999999999999999999999", "must be a whole number, at least 1 and at most 1024"),
        ('overload = "drop"', 'overload = "drop": must be one of "block", "drop_oldest", "reject_newest"'),
        ("dead_line_ms = 3", "[cameras.cam1] dead_line_ms = 3: unknown key; did you mean deadline_ms?"),
        ("heartbeat_ms = 3", "[cameras.cam1] heartbeat_ms = 3: unknown here; it belongs in [line]"),
        ("zzz = [1, {a = 2020-01-01}]", "zzz = [1, {a = 2020-01-01}]: unknown key; known: deadline_ms, overload, "),
        ("deadline_ms = 5", "must be more than [line] answer_margin_ms = 5.0, or no frame could ever be judged"),
        ("[line2]", "line2 = {}: unknown; did you mean line?"),
        ("[alarms]\nlight = inf", "[alarms] light = inf: must be a number, at least 0"),
        ('[alarms]\nlight = "off"', '[alarms] light = "off": must be a number, at least 0'),
        ("[security]\ncurve = 1", "[security] curve = 1: must be true or false"),
        ('[security]\nkeys = ""', '[security] keys = "": must be a path in quotes'),
        ('[security]\nkeys = "a\\u0000b"', "must be a path in quotes"),
        ('[shift]\nstarts = ["06:00", "6:30"]', '[shift] starts[1] = "6:30": must be a local time in quotes, 00:00 to '),
        ('[shift]\nstarts = "06:00"', '[shift] starts = "06:00": must be a list, each a local time in quotes'),
        ('[shift]\nstarts = ["06:00", "06:00"]', '[shift] starts: "06:00" is named twice'),
        ("[products.two]\ncodes = []", "[products.two] bundle is missing: must be a path in quotes"),
        ('[products.two]\nbundle = "gone.bundle"', "no such bundle; name the folder or zip that `adclick bank`"),
        ('[products.two]\nbundle = "."', "a folder without manifest.json is no bundle"),
        ('[products.two]\nbundle = "/dev/null"', "must be a bundle: a folder or a zip file"),
        ('[products.two]\nbundle = "gasket.zip"\ncodes = [""]', 'codes[0] = "": must be a text in quotes, 1 to 64 '),
        ('[products.two]\nbundle = "gasket.zip"\ncodes = ["a", "a"]', '[products.two] codes: "a" is named twice'),
        ('[products."a b"]\nbundle = "gasket.zip"', '[products."a b"]: a name must have 1 to 64 letters, digits'),
        ('[cameras.cam2]\nproduct = "flansch"', "no [products.flansch]; did you mean flange?"),
        ("[cameras.cam2]\nproduct = 3", "[cameras.cam2] product = 3: must be a product's name in quotes: 1 to 64"),
        ("[cameras]\ncam2 = 3", "cameras.cam2 = 3: must be a table, headed by a line [cameras.cam2]"),
    ],
)  # fmt: skip
def test_each_problem_names_table_key_value_and_what_is_allowed(folder: Path, key: str, said: str) -> None:
    found = refusal(folder, edited(more=key))
    assert len(found) == 1
    assert said in found[0]


def test_a_line_that_ran_starts_from_its_own_copies(folder: Path) -> None:
    (folder / "flange.bundle").rename(folder / "tidied.bundle")
    (folder / "state" / "bundles" / "flange").mkdir(parents=True)
    assert "no such bundle" in refusal(folder, GOOD)[0]
    (folder / "state" / "bundles" / "flange" / "0123456789ab").mkdir()
    assert read_line_file(written(folder, GOOD)).products["flange"].bundle == folder / "flange.bundle"


def test_a_code_chooses_one_product(folder: Path) -> None:
    more = '\n[products.two]\nbundle = "gasket.zip"\ncodes = ["2", "1"]'
    found = refusal(folder, edited(('"flange.bundle"', '"flange.bundle"\ncodes = ["1"]'), more=more))
    assert found == ['[products.two] codes: "1" chooses [products.flange] already; a code can choose one product only']


def test_all_problems_are_told_at_once(folder: Path) -> None:
    text = edited(('bundle = "flange.bundle"', ""), more="queue = 0\nfoo = 1\n[limits]\nmax_width = 0")
    found = refusal(folder, text)
    assert len(found) == 4
    for start in ("[products.flange] bundle is", "[cameras.cam1] queue", "[cameras.cam1] foo", "[limits] max_width"):
        assert sum(line.startswith(start) for line in found) == 1


def test_at_most_ten_problems_are_listed(folder: Path) -> None:
    found = refusal(folder, edited(more="\n".join(f"key{i} = {i}" for i in range(14))))
    assert len(found) == 11
    assert found[-1] == "and 4 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[products.NAME] is missing: the line needs at least one"),
        ("", "[cameras.NAME] is missing: the line needs at least one"),
        ('[[cameras]]\nproduct = "flange"', "[cameras] is a list of tables ([[...]]): write a table [cameras.NAME]"),
        ("products = 3", "[products] is 3: write a table [products.NAME] for each"),
        ("line = 3", "line = 3: must be a table, headed by a line [line]"),
        ("bind = []", "bind = []: belongs in [line]"),
        ("[line]\nbind = []", "[line] bind = []: must name at least one endpoint"),
        ("a = 1\nb = = 2", "not TOML: Invalid value (at line 2, column 5)"),
        ("a = 1\na = 2\n", "not TOML: Cannot overwrite a value (at line 2, column 6)"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("#" * (1 << 21), "larger than 1048576 bytes"),
    ],
)
def test_files_that_are_far_from_right(folder: Path, text: str, said: str) -> None:
    assert any(line.startswith(said) for line in refusal(folder, text))


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.toml: no such file"):
        read_line_file(folder / "nothing.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        read_line_file(folder)
    (folder / "line.toml").write_bytes(b"a = 1\n# \xff\n")
    with pytest.raises(ConfigError, match=r"line 2 is not UTF-8"):
        read_line_file(folder / "line.toml")
    assert ConfigError.exit_code == 2


@pytest.mark.parametrize("key", ["[line]\nstate", "[routing]\nspool", "[shift]\nreports"])
def test_a_folder_must_not_be_a_file(folder: Path, key: str) -> None:
    text = edited(('[line]\nbind = ["ipc:///run/adclick/line.ipc"]', ""), more=f'\n{key} = "gasket.zip"')
    (found,) = refusal(folder, text)
    # A long path is shortened.
    assert found.startswith(key.replace("\n", " ") + " = ")
    assert found.endswith(": is there, but is no folder; choose another")


@pytest.mark.parametrize(
    ("endpoint", "bound"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://127.8.8.8:5555", "tcp://127.8.8.8:5555"),
        ("tcp://[::1]:5555", "tcp://[::1]:5555"),
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555"),
        ("tcp://lo:5555", "tcp://lo:5555"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ("ipc://@adclick", "ipc://@adclick"),
        ("ipc:///a b/line.ipc", "ipc:///a b/line.ipc"),
    ],
)
def test_local_endpoints_need_no_key(folder: Path, endpoint: str, bound: str) -> None:
    assert read_line_file(written(folder, bound_to(endpoint))).line.bind == (bound,)


REMOTE = ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://[::]:5555", "tcp://192.168.7.7:5555", "tcp://[fe80::1%lo]:5555",
          "tcp://box.example:5555", "tcp://[::ffff:192.168.7.7]:5555"]  # fmt: skip


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may wait for a name server."""

    def resolve(host: str, *_args: object, **_kwargs: object) -> list[Any]:
        if host == "box.example":
            v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::7", 0, 0, 0))
            return [v6, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.168.7.7", 0))]
        if host == "here.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("endpoint", REMOTE)
def test_remote_endpoints_need_keys_or_somebody_who_says_that_they_do_not(folder: Path, endpoint: str) -> None:
    text = bound_to("ipc:///run/line.ipc", endpoint)
    (found,) = refusal(folder, text)
    assert found.startswith(f'[line] bind[1] = "{endpoint}": other hosts can reach it without proving a key; set')
    assert "adclick keys new" in found
    read_line_file(written(folder, text + "[security]\nplain_remote = true"))
    (found,) = refusal(folder, text + "[security]\ncurve = true")
    assert f'[security] keys = "{folder}/keys"' in found
    assert f"adclick keys new {folder}/keys" in found
    new_keys(folder / "keys", "server")
    assert read_line_file(written(folder, text + "[security]\ncurve = true")).security.curve


@pytest.mark.usefixtures("names")
def test_host_names_become_addresses(folder: Path) -> None:
    config = read_line_file(written(folder, bound_to("tcp://here.example:1", "tcp://127.0.0.1:2")))
    assert config.line.bind == ("tcp://127.0.1.1:1", "tcp://127.0.0.1:2")
    text = bound_to("tcp://box.example:1") + "[security]\nplain_remote = true"
    assert read_line_file(written(folder, text)).line.bind == ("tcp://192.168.7.7:1",)


def test_the_monitor_needs_keys_too(folder: Path) -> None:
    (found,) = refusal(folder, edited(("[products", 'monitor = "tcp://*:5556"\n[products')))
    assert found.startswith('[line] monitor = "tcp://*:5556": other hosts can reach it without proving a key')


@pytest.mark.parametrize("address", ["0.0.0.0:8600", "*:8600", "192.168.7.7:8600", "[::]:8600"])
def test_http_has_no_keys_so_remote_http_must_be_wanted(folder: Path, address: str) -> None:
    new_keys(folder / "keys", "server")
    text = edited(("[products", f'http = "{address}"\n[products'), more="\n[security]\ncurve = true")
    (found,) = refusal(folder, text)
    assert found.startswith(f'[line] http = "{address}": other hosts can reach it, and CURVE does not protect HTTP')
    config = read_line_file(written(folder, text + "\nplain_remote = true"))
    assert config.line.http == address.replace("*", "0.0.0.0")


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("inproc://line", "must be ipc://PATH or tcp://ADDRESS:PORT"),
        ("tcp:/127.0.0.1:1", "must be ipc://PATH or tcp://ADDRESS:PORT"),
        ("tcp://5555", "must end with an address and a port"),
        ("tcp://:5555", "must end with an address and a port"),
        ("tcp://127.0.0.1", "must end with an address and a port"),
        ("tcp://127.0.0.1:", "its port must be a number from 1 to 65535"),
        ("tcp://127.0.0.1:70000", "its port must be a number from 1 to 65535"),
        ("tcp://127.0.0.1:5x", "its port must be a number from 1 to 65535"),
        ("tcp://127.0.0.1:-1", "its port must be a number from 1 to 65535"),
        ("tcp://127.0.0.1:٣", "its port must be a number from 1 to 65535"),
        ("tcp://::1:5555", "an IPv6 address must stand in brackets"),
        ("tcp://127.1:5555", "its host must be an IP address, a host name or *"),
        ("tcp://127.0.0.1;127.0.0.2:5555", "its host must be an IP address, a host name or *"),
        ("tcp://typo.example:5555", "its host is no name that resolves here"),
        ("ipc://*", "must name the socket's file"),
        ("ipc:///run/adclick/", "must name the socket's file"),
        ("ipc:///" + "d/" * 60, "must name the socket's file"),
        ("ipc:///" + "d" * 107, "its path has 108 bytes; a socket's path has at most 107"),
    ],
)
def test_endpoints_that_are_none(folder: Path, endpoint: str, said: str) -> None:
    (found,) = refusal(folder, bound_to(endpoint))
    assert found.startswith("[line] bind[0] = ")
    assert said in found


@pytest.mark.parametrize(
    ("endpoints", "other"),
    [
        (("ipc:///a", "ipc:///a"), "bind[0]"),
        (("tcp://127.0.0.1:5", "tcp://localhost:5"), "bind[0]"),
        (("tcp://127.0.0.1:5", "tcp://*:5"), "bind[0]"),
        (("ipc:///a", "tcp://127.0.0.1:8600"), None),
    ],
)
def test_two_cannot_have_one_address(folder: Path, endpoints: tuple[str, ...], other: str | None) -> None:
    (found,) = refusal(folder, bound_to(*endpoints) + "[security]\nplain_remote = true")
    if other:
        assert f"the same address as {other}" in found
    else:
        assert found == '[line] http = "127.0.0.1:8600": the same address as bind[1]; choose another'


def test_free_ports_do_not_collide(folder: Path) -> None:
    assert len(read_line_file(written(folder, bound_to("tcp://127.0.0.1:*", "tcp://127.0.0.1:0"))).line.bind) == 2


def test_the_state_folder_is_found_in_a_file_that_is_wrong_otherwise(folder: Path) -> None:
    assert state_folder(written(folder, "[line]\nfoo = 1\n[x]")) == folder / "state"
    assert state_folder(written(folder, '[line]\nstate = "/var/lib/adclick"')) == Path("/var/lib/adclick")
    with pytest.raises(ConfigError, match=r"\[line\] state = 3: must be a path in quotes"):
        state_folder(written(folder, "[line]\nstate = 3"))
    with pytest.raises(ConfigError, match=r"no such file"):
        state_folder(folder / "other.toml")


PLAIN = st.recursive(
    st.none().map(lambda _: 0) | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
STRUCTS = [*module.SINGLE.values(), *module.NAMED.values()]
KEYS = st.sampled_from(sorted({field.name for struct in STRUCTS for field in msgspec.structs.fields(struct)}))
TABLE = st.dictionaries(KEYS, PLAIN, max_size=4)
TABLES = st.dictionaries(
    st.sampled_from([*module.SINGLE, *module.NAMED, "other"]),
    PLAIN | TABLE | st.dictionaries(st.text(max_size=4), TABLE, max_size=2),
    max_size=4,
)


@pytest.mark.usefixtures("names")
@given(tables=TABLES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_file_says_the_answer_is_a_clear_error(tables: dict[str, Any], folder: Path) -> None:
    """No product can be right here, since none has a bundle."""
    path = written(folder, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_load", lambda _path: tables)
        with pytest.raises(ConfigError) as error:
            read_line_file(path)
    assert str(error.value).startswith(f"{path}: ")

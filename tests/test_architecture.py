"""The rules of the architecture, each enforced on the tree: what no test enforces is not a rule.

A check takes files, as a mapping from path to text, and returns what is wrong with them, one line per place. The last
tests plant violations of every check, beside near misses that are allowed: a check that cannot fail proves nothing.
"""

from __future__ import annotations

import ast
import functools
import io
import platform
import posixpath
import re
import shutil
import subprocess
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path, PurePosixPath

import pytest

import monarch_ops
from monarch_ops import _C

ROOT = Path(__file__).resolve().parents[1]
CPP = (".h", ".cpp", ".cuh", ".cu")
CODE = (*CPP, ".py", ".def", ".in")
SOURCES = ("csrc/", "monarch_ops/", "bench/", "tests/", "setup.py", "CMakeLists.txt")

Files = dict[str, str]
Check = Callable[[Files], list[str]]


# ---- the tree --------------------------------------------------------------------------------------------------------


def _paths() -> Iterable[str]:
    """What git knows or would add; without git, everything that does not look generated."""
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, capture_output=True, text=True)
        if listed.returncode == 0 and listed.stdout:
            return set(listed.stdout.splitlines())
    generated = re.compile(r"(?:^|/)(?:build|dist|__pycache__|\.[^/]*|[^/]*\.egg-info)/")
    paths = (p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*"))
    return [p for p in paths if not generated.search(p)]


@pytest.fixture(scope="module")
def tree() -> Files:
    named = [p for p in sorted(_paths()) if p.startswith(SOURCES) and p.endswith((*CODE, "CMakeLists.txt"))]
    files = {p: (ROOT / p).read_text() for p in named if (ROOT / p).is_file()}
    assert {"csrc/schema.cpp", "csrc/kernels/variants.def", "monarch_ops/__init__.py"} <= set(files)
    return files


def _pieces(path: str, text: str) -> Iterable[tuple[int, int, str]]:
    """Start, end and kind of what the text is made of: "code", "string" or "comment"."""
    if path.endswith(".py"):
        starts = [0, *accumulate(len(line) for line in text.splitlines(keepends=True))]
        kinds = {tokenize.COMMENT: "comment", tokenize.STRING: "string"}
        kinds[getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)] = "string"  # since Python 3.12
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type in kinds]
        marked = [(starts[t.start[0] - 1] + t.start[1], starts[t.end[0] - 1] + t.end[1], kinds[t.type]) for t in tokens]
    else:
        literal = r"""//[^\n]*|/\*.*?\*/|R"\(.*?\)"|"(?:\\.|[^"\\\n])*"|(?<![\da-fA-F])'(?:\\.|[^'\\\n])*'"""
        found = re.finditer(literal, text, re.S)
        marked = [(*m.span(), "comment" if m[0].startswith("/") else "string") for m in found]
    at = 0
    for start, end, kind in marked:
        yield at, start, "code"
        yield start, end, kind
        at = end
    yield at, len(text), "code"


@functools.cache
def keep(path: str, text: str, *kinds: str) -> str:
    """The text with everything else blank; lines and columns stay."""
    return "".join(
        text[start:end] if kind in kinds else re.sub(r"[^\n]", " ", text[start:end])
        for start, end, kind in _pieces(path, text)
    )


def under(files: Files, *folders: str, suffixes: tuple[str, ...] = CODE) -> Files:
    return {path: text for path, text in files.items() if path.startswith(folders) and path.endswith(suffixes)}


def grep(files: Files, pattern: str, *kinds: str) -> list[str]:
    """Lines that the pattern matches, in the code unless told otherwise."""
    compiled = re.compile(pattern)
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in files.items()
        for number, line in enumerate(keep(path, text, *(kinds or ("code",))).splitlines(), 1)
        if compiled.search(line)
    ]


# ---- 1 to 4: layers, launches, schemas, variants ---------------------------------------------------------------------


def torch_headers(files: Files) -> list[str]:
    inner = {p: t for p, t in under(files, "csrc/").items() if not p.startswith(("csrc/schema.cpp", "csrc/ops/"))}
    return grep(inner, r"^\s*#\s*include\s*[<\"](?:torch/|ATen|c10)", "code", "string")


# who includes what is a decision about layers: these must not
FORBIDDEN_INCLUDES = {
    "csrc/plan/": ("csrc/ops/", "csrc/kernels/"),
    "csrc/kernels/": ("csrc/ops/",),
    "csrc/kernels/math/": ("csrc/kernels/cpu/", "csrc/kernels/cuda/"),
    "csrc/kernels/cpu/": ("csrc/kernels/cuda/",),
    "csrc/kernels/cuda/": ("csrc/kernels/cpu/",),
    "csrc/bindings.cpp": ("csrc/ops/",),
}


def include_rule(files: Files) -> list[str]:
    found = []
    for path, text in under(files, "csrc/").items():
        for name in re.findall(r"^\s*#\s*include\s*[<\"]([^>\"]+)", text, re.M):
            from_root = name.startswith(("ops/", "plan/", "kernels/"))
            target = posixpath.normpath(posixpath.join("csrc" if from_root else posixpath.dirname(path), name))
            for folder, forbidden in FORBIDDEN_INCLUDES.items():
                if path.startswith(folder) and target.startswith(forbidden):
                    found.append(f"{path} includes {target}")
    return found


def inline_assembly(files: Files) -> list[str]:
    """Of GPUs and of CPUs, a file each."""
    homes = {"csrc/kernels/cuda/ptx.cuh", "csrc/kernels/cpu/simd.h"}
    return grep({p: t for p, t in under(files, "csrc/").items() if p not in homes}, r"\b(?:asm|__asm|__asm__)\b")


def launches(files: Files) -> list[str]:
    """`<<<` in one file only, on the stream of the caller and with the error looked at; kernels run under a guard."""
    home = "csrc/kernels/cuda/launch.cuh"
    found = grep({p: t for p, t in under(files, "csrc/").items() if p != home}, r"<<<|cudaLaunchKernel|cudaSetDevice")
    for path, text in files.items():
        code = keep(path, text, "code")
        for launch in re.finditer(r"<<<.*?>>>\(.*?\);\s*(.*)", code, re.S) if path == home else ():
            if "stream" not in launch[0].partition(">>>(")[0]:
                found.append(f"{path}: a launch without a stream")
            if "cudaGetLastError" not in launch[1].partition(";")[0]:
                found.append(f"{path}: a launch whose error is not looked at")
        if path.startswith("csrc/ops/") and "exec.stream" in code and "DeviceGuard" not in code:
            found.append(f"{path}: kernels run without a device guard")
    return found


# a word of a name that stands for a dtype, a size or a direction
VARIANT_WORD = re.compile(
    r"(?:fp|bf|float|bfloat|int|uint|f|i|u)(?:8|16|32|64)|half|float|double"
    r"|(?:fft|conv|len|seqlen|size|[bhln])?\d{2,}k?|\d+k|ifft|inverse"
)


def variant_word(name: str) -> bool:
    return any(VARIANT_WORD.fullmatch(word) for word in re.split(r"[_\W]+", name.lower()))


def schemas(files: Files) -> list[str]:
    """One schema per op, in schema.cpp, each with one implementation."""
    text = files.get("csrc/schema.cpp", "")
    defined = Counter(re.findall(r'\bm\.def\(\s*"(\w+)\(', text))
    implemented = Counter(re.findall(r'\bm\.impl\(\s*"(\w+)"', text))
    found = [f"schema {name} is named after a size, dtype or direction" for name in defined if variant_word(name)]
    found += [f"schema {name} appears {n} times" for name, n in (*defined.items(), *implemented.items()) if n > 1]
    found += [f"{name} is defined or implemented alone" for name in defined.keys() ^ implemented.keys()]
    elsewhere = {p: t for p, t in under(files, "csrc/", "monarch_ops/").items() if p != "csrc/schema.cpp"}
    return found + grep(elsewhere, r"TORCH_LIBRARY(?:_\w+)?\(|library\.(?:define|custom_op)\b")


def file_names(files: Files) -> list[str]:
    return [p for p in under(files, "csrc/", "monarch_ops/", "bench/", "tests/") if variant_word(PurePosixPath(p).stem)]


Row = tuple[str, str, str, str]  # family, device, instruction set, compute type


def variants_agree(table: str, compiled: list[Row], built: set[str]) -> list[str]:
    """Compiled are exactly the rows whose instruction set was built, in the order of the table."""
    rows = re.findall(r"^MONARCH_VARIANT\((\w+), (\w+), (\w+), (\w+)\)$", table, re.M)
    found = [f"{row} is twice in variants.def" for row, n in Counter(rows).items() if n > 1]
    found += [f"{row} was not compiled" for row in rows if row[2] in built and row not in compiled]
    found += [f"{row} is not in variants.def" for row in compiled if row not in rows]
    families = dict.fromkeys(row[0] for row in rows)
    in_order = [row for family in families for row in rows if row[0] == family and row in compiled]
    return found or ([] if compiled == in_order else ["the order is not that of variants.def"])


def variant_macros(files: Files) -> list[str]:
    """Nobody lists kernels a second time."""
    lists = {p: t for p, t in under(files, "csrc/").items() if p != "csrc/kernels/variants.def"}
    return grep(lists, r"^\s*MONARCH_VARIANT\(")


# ---- 5 to 7 and 9: what the text must not contain --------------------------------------------------------------------

# of A100, H100 and their like
HARDWARE = "|".join(
    [
        r"(?<![\w.])(?:108|114|132|148)(?![\w.])",  # multiprocessors
        r"(?<![\w.])(?:48|99|100|163|164|227|228) ?\* ?1024\b|\b1024 ?\* ?(?:48|99|100|163|164|227|228)\b",
        r"\b(?:49152|101376|102400|166912|167936|232448|233472)\b",  # shared memory
        r"\b(?:40|50) ?<< ?20\b|\b(?:41943040|52428800)\b",  # L2
    ]
)


def hardware_numbers(files: Files) -> list[str]:
    return grep({p: t for p, t in under(files, "csrc/").items() if p != "csrc/plan/device.h"}, HARDWARE)


def hand_kept_copies(files: Files) -> list[str]:
    wording = r"(?i)\bmust (?:match|mirror|agree with|be kept)\b|\b(?:keep|kept|stay)\b.{0,20}\bin (?:sync|step)\b"
    return grep(under(files, *SOURCES, suffixes=(*CPP, ".py", ".def")), wording, "comment")


def environment_variables(files: Files) -> list[str]:
    return grep(under(files, "csrc/", "monarch_ops/"), r"\b(?:secure_)?getenv\b|\benviron\b")


def prints_and_exits(files: Files) -> list[str]:
    """The command line may print; nothing else does."""
    command_line = re.compile(r"monarch_ops/(?:cli|__main__|demo[^/]*)(?:\.py|/)")
    library = {p: t for p, t in under(files, "monarch_ops/").items() if not command_line.match(p)}
    native = under(files, "csrc/")
    return [
        *grep(library, r"(?<!\w)(?:print|_?exit|quit|breakpoint)\s*\(|\bsys\.(?:exit|stdout|stderr)\b"),
        *grep(native, r"\b(?:f?printf|f?puts|_?exit|abort|terminate|assert)\s*\(|\bstd::(?:cerr|cout|clog)\b"),
    ]


# ---- 8: size and repetition ------------------------------------------------------------------------------------------


def is_python_statement(comment: str) -> bool:
    """Whether the words of a comment are a statement; `word: more words` is prose."""
    try:
        body = ast.parse(comment + " pass" if comment.endswith(":") else comment).body
    except SyntaxError:
        return False
    return any(
        isinstance(s.value, ast.Call | ast.Await | ast.Yield)
        if isinstance(s, ast.Expr)
        else not isinstance(s, ast.AnnAssign) or s.value is not None
        for s in body
    )


def commented_out_code(files: Files) -> list[str]:
    found = grep(under(files, *SOURCES, suffixes=CPP), r"(?://|/\*|^\s*\*).*[;{}]\s*(?:\*/)?\s*$", "comment")
    for path, text in under(files, *SOURCES, suffixes=(".py",)).items():
        for number, line in enumerate(keep(path, text, "comment").splitlines(), 1):
            words = line.strip().lstrip("#").strip()
            if words and is_python_statement(words):
                found.append(f"{path}:{number}: {words}")
    return found


def long_files(files: Files) -> list[str]:
    lengths = {path: len(text.splitlines()) for path, text in under(files, *SOURCES, suffixes=(*CODE, ".txt")).items()}
    return [f"{path}: {lines} lines" for path, lines in lengths.items() if lines > 500]


def long_python_functions(files: Files) -> list[str]:
    found = []
    for path, text in under(files, *SOURCES, suffixes=(".py",)).items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
            lines = node.end_lineno - node.lineno + 1 - docstring
            if lines > 60:
                found.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
    return found


def long_native_functions(files: Files) -> list[str]:
    """A block whose head has parentheses and declares no type is a function, or lies in one."""
    found = []
    for path, text in under(files, "csrc/", "tests/", suffixes=CPP).items():
        code = keep(path, text, "code")
        opened: list[tuple[str, int]] = []
        head = 0
        for mark in re.finditer(r"[{};]", code):
            line = code.count("\n", 0, mark.start()) + 1
            if mark[0] == "{":
                opened.append((code[head : mark.start()], line))
            elif mark[0] == "}" and opened:
                declaration, first = opened.pop()
                is_type = re.search(r"\b(?:namespace|struct|class|union|enum)\b", declaration)
                if "(" in declaration and not is_type and line - first + 1 > 150:
                    found.append(f"{path}:{first}: a function of {line - first + 1} lines")
            head = mark.end()
    return found


def repetition(files: Files, window: int = 6) -> float:
    """Share of the lines that are in a run of `window` lines found twice; braces, includes and such do not count."""
    trivial = re.compile(r"[\s{}();,]*|#\s*(?:include|pragma|endif|else).*|(?:public|private|default):|namespace.*")
    lines: dict[str, list[str]] = {}
    for path, text in files.items():
        normal = (" ".join(line.split()) for line in keep(path, text, "code", "string").splitlines())
        lines[path] = [line for line in normal if not trivial.fullmatch(line)]
    seen = Counter(tuple(found[i : i + window]) for found in lines.values() for i in range(len(found) - window + 1))
    repeated = 0
    for found in lines.values():
        twice = [i for i in range(len(found) - window + 1) if seen[tuple(found[i : i + window])] > 1]
        repeated += len({i + j for i in twice for j in range(window)})
    return repeated / max(1, sum(map(len, lines.values())))


def repeated_lines(files: Files) -> list[str]:
    share = repetition(under(files, "csrc/", suffixes=CPP))
    return [f"{share:.0%} of csrc/ is repeated"] if share > 0.10 else []


# ---- the rules -------------------------------------------------------------------------------------------------------

COMPUTE = {"float16": "f16", "float32": "f32", "float64": "f64"}


def compiled_rows() -> list[Row]:
    return [(v["family"], v["device"], v["name"], COMPUTE[v["compute"]]) for v in monarch_ops.variants()]


def built_instruction_sets() -> set[str]:
    x86 = {"avx2", "avx512"} if platform.machine() in ("x86_64", "AMD64") else set()
    return {"generic"} | x86 | ({"cuda", "tensor_cores"} if _C.build_info()["cuda"] else set())


def variants_of(files: Files) -> list[str]:
    return variants_agree(files["csrc/kernels/variants.def"], compiled_rows(), built_instruction_sets())


RULES: dict[str, tuple[Check, ...]] = {
    "1 torch is confined, includes point downwards": (torch_headers, include_rule),
    "2 assembly and launches have one place": (inline_assembly, launches),
    "3 one schema per op, no file per size or dtype": (schemas, file_names),
    "4 kernels are rows of the table": (variants_of, variant_macros),
    "5 numbers of the hardware are data": (hardware_numbers,),
    "6 nothing is kept in agreement by hand": (hand_kept_copies,),
    "7 no environment variables at run time": (environment_variables,),
    "8 no dead code, nothing long, nothing twice": (
        commented_out_code, long_files, long_python_functions, long_native_functions, repeated_lines,
    ),
    "9 errors are exceptions": (prints_and_exits,),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_rule(tree: Files, rule: str) -> None:
    found = [what for check in RULES[rule] for what in check(tree)]
    assert not found, "\n".join(found)


LAUNCH = "void f() {{ k<<<1, 2, 0, {stream}>>>(a); {after} }}\n"
OPS, CUDA, HOST = "csrc/ops/a.cpp", "csrc/kernels/cuda/a.cuh", "csrc/kernels/cpu/a.h"
LAUNCHER, SCHEMA = "csrc/kernels/cuda/launch.cuh", "csrc/schema.cpp"
PYTHON, CLI = "monarch_ops/a.py", "monarch_ops/cli.py"
CHECKED = "const auto error = cudaGetLastError();"
GOOD_LAUNCH = LAUNCH.format(stream="stream", after=CHECKED)
DEF = 'm.def("{0}(Tensor x) -> Tensor"); m.impl("{1}", f);\n'
LINES = "".join(f"  first[{i}] = second({i});\n" for i in range(8))

# a violation, and the nearest thing that is none
PLANTED: list[tuple[Check, Files, Files]] = [
    (torch_headers, {HOST: "#include <torch/all.h>\n"}, {OPS: "#include <torch/all.h>\n"}),
    (torch_headers, {"csrc/bindings.cpp": '#include "ATen/ATen.h"\n'}, {HOST: "// #include <ATen/ATen.h>\n"}),
    (include_rule, {CUDA: '#include "../../ops/check.h"\n'}, {OPS: '#include "../kernels/args.h"\n'}),
    (include_rule, {"csrc/plan/a.h": '#include "kernels/cuda/x.cuh"\n'}, {"csrc/plan/a.h": '#include "cost.h"\n'}),
    (inline_assembly, {CUDA: 'asm volatile("x;");\n'}, {"csrc/kernels/cuda/ptx.cuh": 'asm volatile("x;");\n'}),
    (inline_assembly, {HOST: 'asm("x");\n'}, {"csrc/kernels/cpu/simd.h": 'asm("x");\n'}),
    (launches, {CUDA: LAUNCH.format(stream="s", after=CHECKED)}, {CUDA: "// k<<<1, 2>>>(a) is launched there\n"}),
    (launches, {LAUNCHER: LAUNCH.format(stream="0", after=CHECKED)}, {LAUNCHER: GOOD_LAUNCH}),
    (launches, {LAUNCHER: LAUNCH.format(stream="stream", after="return;")}, {LAUNCHER: GOOD_LAUNCH}),
    (launches, {OPS: "exec.stream = s;\n"}, {OPS: "DeviceGuard guard(0);\nexec.stream = s;\n"}),
    (schemas, {SCHEMA: DEF.format("fft_bf16", "fft_bf16")}, {SCHEMA: DEF.format("conv1d", "conv1d")}),
    (schemas, {SCHEMA: DEF.format("a", "a") * 2}, {SCHEMA: DEF.format("m2_mixer", "m2_mixer")}),
    (schemas, {SCHEMA: DEF.format("a", "b")}, {SCHEMA: DEF.format("a", "a") + DEF.format("b", "b")}),
    (schemas, {OPS: "STABLE_TORCH_LIBRARY(a, m) {}\n"}, {OPS: "// STABLE_TORCH_LIBRARY(a, m)\n"}),
    (schemas, {PYTHON: 'torch.library.define("x::y", "")\n'}, {PYTHON: 'torch.library.register_fake("x::y")\n'}),
    (file_names, {"csrc/kernels/cuda/conv_1024.cuh": ""}, {"csrc/kernels/cuda/depthwise_conv1d.cuh": ""}),
    (file_names, {"tests/test_fft_bf16.py": ""}, {"tests/test_m2bert.py": ""}),
    (variant_macros, {OPS: "MONARCH_VARIANT(a, cpu, avx2, f32)\n"}, {OPS: "#define MONARCH_VARIANT(a, b, c, d)\n"}),
    (hardware_numbers, {CUDA: "int bytes = 227 * 1024;\n"}, {"csrc/plan/device.h": "int bytes = 227 * 1024;\n"}),
    (hardware_numbers, {OPS: "blocks = 132;\n"}, {OPS: "x = 1.132f; // 132\n"}),
    (hand_kept_copies, {HOST: "// must match args.h\n"}, {HOST: 'refuse("must match");\n'}),
    (hand_kept_copies, {PYTHON: "x = 1  # Keep this in sync with y\n"}, {PYTHON: "x = 1  # keeps y in cache\n"}),
    (environment_variables, {PYTHON: 'os.environ["A"]\n'}, {PYTHON: "x = 1  # os.environ is not read\n"}),
    (environment_variables, {OPS: 'std::getenv("A");\n'}, {"setup.py": 'os.environ["A"]\n'}),
    (commented_out_code, {HOST: "  // x[i] = y[i];\n"}, {HOST: "  // x[i] is y[i]\n"}),
    (commented_out_code, {HOST: "/* if (a) {\n*/\n"}, {HOST: "x = y;  // in place\n"}),
    (commented_out_code, {PYTHON: "# y = conv(x)\n"}, {PYTHON: "# y: the convolution of x\n"}),
    (long_files, {PYTHON: "x = 1\n" * 501}, {PYTHON: "x = 1\n" * 500}),
    (long_python_functions, {PYTHON: "def f():\n" + "    x = 1\n" * 60}, {PYTHON: "def f():\n" + "    x = 1\n" * 59}),
    (long_python_functions, {PYTHON: "async def f():\n" + "    x = 1\n" * 60},
     {PYTHON: 'def f():\n    """' + "a\n" * 30 + '"""\n' + "    x = 1\n" * 59}),
    (long_native_functions, {OPS: "void f(int a) {\n" + "  g();\n" * 149 + "}\n"},
     {OPS: "namespace a {\n" + "void f() { g(); }\n" * 200 + "}\n"}),
    (repeated_lines, {OPS: LINES, HOST: LINES}, {OPS: LINES}),
    (prints_and_exits, {PYTHON: 'print("failed")\n'}, {CLI: 'print("failed")\n'}),
    (prints_and_exits, {PYTHON: "sys.exit(1)\n"}, {PYTHON: "def pprint(x): ...\n"}),
    (prints_and_exits, {OPS: "std::cerr << x;\n"}, {OPS: 'static_assert(a); throw error("printf(x)");\n'}),
]  # fmt: skip


@pytest.mark.parametrize(("check", "violation", "allowed"), PLANTED, ids=lambda v: getattr(v, "__name__", ""))
def test_checks_find_planted_violations(check: Check, violation: Files, allowed: Files) -> None:
    assert check(violation)
    assert not check(allowed)


def test_the_check_of_variants_can_fail(tree: Files) -> None:
    table, compiled, built = tree["csrc/kernels/variants.def"], compiled_rows(), built_instruction_sets()
    assert variants_agree(table, compiled[1:], built) == [f"{compiled[0]} was not compiled"]
    assert variants_agree(table, compiled[::-1], built)
    first = next(line for line in table.splitlines() if line.startswith("MONARCH_VARIANT"))
    assert variants_agree(table + first + "\n", compiled, built)
    assert variants_agree(table.replace(first, ""), compiled, built) == [f"{compiled[0]} is not in variants.def"]


def test_the_stub_of_the_extension_module_says_what_is_compiled() -> None:
    """Rule 6 again: types cannot be derived from the compiled module, so what they say is compared with it."""
    stub = ast.parse((ROOT / "monarch_ops" / "_C.pyi").read_text())
    written = {f.name: [a.arg for a in f.args.args] for f in stub.body if isinstance(f, ast.FunctionDef)}
    signatures = {name: getattr(_C, name).__doc__.splitlines()[0] for name in dir(_C) if not name.startswith("_")}
    assert written == {name: re.findall(r"(\w+): ", line) for name, line in signatures.items()}


def test_every_check_is_planted_and_every_rule_numbered() -> None:
    planted = {check for check, _, _ in PLANTED} | {variants_of}
    assert {check for checks in RULES.values() for check in checks} == planted
    assert [int(rule.split()[0]) for rule in RULES] == list(range(1, 10))

"""Hands the build to CMake (CMakeLists.txt); metadata and tool settings live in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configure, build and install with CMake; the build folder stays, so that the next build is incremental."""

    def run(self) -> None:
        state = "editable" if self.inplace else "wheel"
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{state}"
        prefix = ROOT if self.inplace else Path(self.build_lib).resolve()
        # cmake and ninja may be in an environment that is not activated
        env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        subprocess.run(configure, env=env, check=True)
        subprocess.run(["cmake", "--build", str(build)], env=env, check=True)
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(prefix)], env=env, check=True)


setup(ext_modules=[Extension("monarch_ops._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

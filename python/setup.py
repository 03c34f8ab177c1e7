"""Builds the shared libraries with the repository's Makefile and puts them beside the Python files."""
import os
import shutil
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution
from wheel.bdist_wheel import bdist_wheel

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARIES = ("libkvbook.so", "libkvb-kmeans.so")


class BuildWithLibraries(build_py):
    def run(self):
        super().run()
        build = os.environ.get("KVB_BUILD", "build")
        subprocess.check_call(["make", "-C", ROOT, f"BUILD={build}"] + [f"{build}/{name}" for name in LIBRARIES])
        for name in LIBRARIES:
            shutil.copy(os.path.join(ROOT, build, name), os.path.join(self.build_lib, "kvbook", name))


class PlatformWheel(bdist_wheel):
    """ctypes needs no particular Python, only this machine's kind of processor and libc."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


class WithBinaries(Distribution):
    def has_ext_modules(self):
        return True


setup(cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel}, distclass=WithBinaries)

# kvbook: plain `make` builds the command, the libraries and says what it found. `make help` lists the targets.
CC ?= cc
PREFIX ?= /usr/local
BUILD ?= build
OPT ?= -O2
V ?= 0
Q = $(if $(filter 1,$(V)),,@)

WARN = -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes
HARDEN = -fstack-protector-strong -D_FORTIFY_SOURCE=2
CPPFLAGS += -Iinclude -I. -D_GNU_SOURCE
CFLAGS += -std=c11 $(OPT) -g $(WARN) $(WERROR) $(HARDEN) -fopenmp -fPIC -fvisibility=hidden -ffp-contract=off
LDFLAGS += -Wl,-z,relro,-z,now
LIBS_RUNTIME = -lz -lm
LIBS = -lopenblas -lpcre2-8 $(LIBS_RUNTIME)

# An alternative backend of k-means, in C++; nothing else needs it.
ifeq ($(FAISS),1)
CPPFLAGS += -DKVB_FAISS
FAISS_OBJ = $(BUILD)/obj/kmeans/kmeans_faiss.o
# Debian has the archive only: it takes its BLAS and LAPACK from OpenBLAS.
FAISS_LIBS = -lfaiss -lopenblas -lstdc++
LIBS += $(FAISS_LIBS)
endif

# Calibration by several processes (mpirun): make MPI=1, with Open MPI from Debian (make deps MPI=1).
ifeq ($(MPI),1)
CPPFLAGS += -DKVB_MPI $(shell pkg-config --cflags ompi-c 2>/dev/null | sed 's/-I/-isystem /g')
LIBS += $(or $(shell pkg-config --libs ompi-c 2>/dev/null),-lmpi)
endif

# A build that has the objects of cuda/*.cu already.
CUDA_BUILD ?= $(BUILD)
# Calibration on a GPU, in the command: make CUDA=1 BUILD=build/cuda. No GPU is needed to build.
ifeq ($(CUDA),1)
CPPFLAGS += -DKVB_CUDA
CUDA_KMEANS_OBJ = $(BUILD)/obj/cuda/calib/cuda_kmeans.o
CUDA_CALIB_OBJ = $(patsubst %.cu,$(BUILD)/obj/%.o,$(wildcard cuda/calib/*.cu cuda/eval/*.cu))
$(CUDA_CALIB_OBJ): NVCCFLAGS += -Xcompiler -fopenmp
# The GPU cache, which eval and generate attend through.
CUDA_CACHE_OBJ = $(patsubst %.cu,$(CUDA_BUILD)/obj/%.o,$(wildcard cuda/*.cu))
CUDA_LIBS = -L$(dir $(realpath $(shell command -v $(NVCC))))../lib64 -lcublas -lcudart_static -lstdc++ -ldl -lrt -lpthread
LIBS += $(CUDA_LIBS)
endif

# A sanitizer build is the same tree in a folder of its own: make SAN=address,undefined BUILD=build/asan
ifneq ($(SAN),)
CFLAGS += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all
LDFLAGS += -fsanitize=$(SAN)
HARDEN =
endif

# The runtime library must link into an engine with libc, libm and zlib alone.
RUNTIME_SRC = $(wildcard format/base/*.c format/*.c runtime/*.c)
FULL_SRC = $(RUNTIME_SRC) $(wildcard kmeans/*.c model/*.c calib/*.c)
TOOL_SRC = $(wildcard tools/*.c)
TEST_SRC = $(wildcard tests/*/test_*.c)
TEST_LIB_SRC = $(wildcard tests/support/*.c)
FUZZ_SRC = $(wildcard tests/fuzz/fuzz_*.c)
CUDA_SRC = $(wildcard cuda/*.cu)
EXAMPLE_SRC = $(wildcard docs/examples/*.c)
RECIPES = $(wildcard calib/recipes/*.json)

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
TESTS = $(patsubst %.c,$(BUILD)/%,$(TEST_SRC))
FUZZERS = $(patsubst %.c,$(BUILD)/%,$(FUZZ_SRC))
EXAMPLES = $(patsubst %.c,$(BUILD)/%,$(EXAMPLE_SRC))

.PHONY: force all help man deb deps check check-models check-python check-quick wheel tests asan tsan fuzz golden demo bench cuda check-cuda bench-cuda cuda-calib check-cuda-calib bench-cuda-calib install uninstall dist clean print-config
.SECONDARY:

all: print-config $(BUILD)/kvbook $(BUILD)/libkvbook.a $(BUILD)/libkvbook.so $(BUILD)/libkvb-kmeans.a $(BUILD)/libkvb-kmeans.so

help:
	@echo 'make            build $(BUILD)/kvbook and the libraries'
	@echo 'make deps       install what the build and the tests need (Debian; quick when nothing is missing)'
	@echo 'make demo       deps, build, fetch a small model and text, calibrate a 1-bit book, evaluate it'
	@echo 'make check      deps, build with -Werror, all tests, sanitizers; ends with "N passed, N failed"'
	@echo 'make check-models  every architecture and kvbook.hf against transformers, which is installed into $(BUILD)/venv (torch: 2 GB or more)'
	@echo 'make check-python  the Python package, installed by pip into $(BUILD)/venv-python; make wheel builds it'
	@echo 'make check-quick  the unit tests of the plain build only'
	@echo 'make asan       the unit tests under AddressSanitizer and UBSan'
	@echo 'make tsan       k-means under ThreadSanitizer (clang and libomp)'
	@echo 'make fuzz       libFuzzer targets (clang) for the file readers'
	@echo 'make golden     write the golden books of the tests again'
	@echo 'make bench      build the benchmark programs; bench/ has the scripts that run them'
	@echo 'make cuda       build $(BUILD)/libkvbook-cuda with the GPU runtime (CUDA Toolkit; no GPU needed)'
	@echo 'make cuda-calib  build $(BUILD)/cuda/kvbook, which calibrates, scores and generates on a GPU (--device cuda); make check-cuda-calib tests it, make bench-cuda-calib both'
	@echo 'make check-cuda  the tests that need a GPU; make bench-cuda times decoding beside PyTorch'
	@echo 'make man        the manual (scdoc) and the completions of bash and zsh, into $(BUILD)/man; make install installs them'
	@echo 'make deb        a Debian package, $(BUILD)/kvbook_VERSION_ARCH.deb'
	@echo 'make install uninstall dist clean    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR)'
	@echo 'Variables: CC CXX OPT BUILD SAN FAISS=1 MPI=1 PREFIX DESTDIR NVCC CUDA_ARCH; V=1 shows the commands.'

print-config:
	@echo 'kvbook: CC=$(CC), OpenMP on, OpenBLAS on, CUDA $(if $(CUDA_CALIB_OBJ),on,$(if $(NVCC),with make cuda,off (no nvcc))), FAISS $(if $(FAISS_OBJ),on,off), MPI $(if $(filter 1,$(MPI)),on,off) -> $(BUILD)/'

deps:
	$(Q)MPI=$(MPI) tools/deps.sh

# Vector builds only where the compiler targets x86-64; elsewhere these files give their callers NULL.
ifneq ($(filter x86_64-%,$(shell $(CC) -dumpmachine)),)
$(BUILD)/obj/%_avx2.o: CFLAGS += -mavx2 -mfma -mf16c -ffp-contract=fast
$(BUILD)/obj/%_avx512.o: CFLAGS += -ffp-contract=fast -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512
endif

# Objects are made anew when the flags change: warnings are errors in `make check` whatever was built before.
FLAGS_NOW := $(CC) $(CPPFLAGS) $(CFLAGS)
$(BUILD)/flags: force
	@mkdir -p $(@D)
	@echo '$(FLAGS_NOW)' | cmp -s - $@ || echo '$(FLAGS_NOW)' >$@
force:

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  CC $<'
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.o: %.cc $(BUILD)/flags
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  CXX $<'
	$(Q)$(CXX) $(CPPFLAGS) -std=c++17 $(OPT) -g -Wall -Wextra $(WERROR) $(HARDEN) -fopenmp -fPIC -fvisibility=hidden $(if $(SAN),-fsanitize=$(SAN)) -MMD -MP -c -o $@ $<

$(BUILD)/gen/recipes_data.c: $(RECIPES) tools/embed.sh
	@mkdir -p $(@D)
	$(Q)tools/embed.sh $(RECIPES) > $@.tmp && mv $@.tmp $@

$(BUILD)/obj/gen/recipes_data.o: $(BUILD)/gen/recipes_data.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

$(BUILD)/libkvb-all.a: $(call obj,$(FULL_SRC)) $(FAISS_OBJ) $(CUDA_CALIB_OBJ) $(CUDA_CACHE_OBJ) $(if $(RECIPES),$(BUILD)/obj/gen/recipes_data.o)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/libkvbook.a: $(call obj,$(RUNTIME_SRC))
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/libkvb-kmeans.a: $(call obj,$(wildcard kmeans/*.c format/base/*.c)) $(FAISS_OBJ) $(CUDA_KMEANS_OBJ)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/libkvbook.so: $(call obj,$(RUNTIME_SRC))
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(filter-out -fopenmp,$(CFLAGS)) -shared -Wl,-soname,libkvbook.so.1 -Wl,--no-undefined $(LDFLAGS) -o $@ $^ $(LIBS_RUNTIME)

# K-means on its own for programs that load libraries at run time, such as the Python package.
$(BUILD)/libkvb-kmeans.so: $(call obj,$(wildcard kmeans/*.c format/base/*.c)) $(FAISS_OBJ) $(CUDA_KMEANS_OBJ)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) -shared -Wl,-soname,libkvb-kmeans.so.1 -Wl,--no-undefined $(LDFLAGS) -o $@ $^ $(FAISS_LIBS) $(CUDA_LIBS) $(LIBS_RUNTIME)

$(BUILD)/kvbook: $(call obj,$(TOOL_SRC)) $(BUILD)/libkvb-all.a
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -pie -o $@ $^ $(LIBS)

$(BUILD)/libtest.a: $(call obj,$(TEST_LIB_SRC))
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(BUILD)/libtest.a $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

# The command's own objects are in no library.
$(BUILD)/tests/tools/test_pivots: $(BUILD)/obj/tests/tools/test_pivots.o $(call obj,$(filter-out tools/main.c,$(TOOL_SRC))) $(BUILD)/libtest.a $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

# Tests of calibration on a GPU: there is no cmocka there.
$(BUILD)/tests/cuda/gpu_capture_compare: $(BUILD)/obj/tests/cuda/gpu_capture_compare.o $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/cuda/gpu_kmeans_test: $(BUILD)/obj/tests/cuda/gpu_kmeans_test.o $(BUILD)/libkvb-kmeans.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(CUDA_LIBS) $(LIBS_RUNTIME)

# The tiny model that the command-line tests run on, and the seeds of the GGUF fuzzer.
$(BUILD)/tests/make_%: $(BUILD)/obj/tests/tools/make_%.o $(BUILD)/libtest.a $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# What a model computes, for comparisons with other programs.
$(BUILD)/tests/model_probe: $(BUILD)/obj/tests/tools/model_probe.o $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# Preloaded into the command, makes its system calls fail one at a time.
$(BUILD)/obj/tests/tools/fault.o: CFLAGS += -fvisibility=default
$(BUILD)/tests/fault.so: $(BUILD)/obj/tests/tools/fault.o
	@mkdir -p $(@D)
	$(Q)$(CC) $(filter-out -fopenmp -fsanitize=%,$(CFLAGS)) -shared -o $@ $^ -ldl

# A fuzz target replays its corpus in the tests; `make fuzz` links the same object with libFuzzer.
$(FUZZERS): $(BUILD)/tests/fuzz/%: $(BUILD)/obj/tests/fuzz/%.o $(BUILD)/obj/tests/fuzz/replay.o $(BUILD)/libtest.a $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# The atomic writer is tested with each system call it makes failing in turn.
$(BUILD)/tests/format/test_outfile: LDFLAGS += -Wl,--wrap=pwrite,--wrap=fsync,--wrap=close,--wrap=rename
# So are the allocations of these.
MEMORY_TESTS = format/test_format_memory runtime/test_cache_memory runtime/test_cache_file_memory kmeans/test_kmeans_memory
$(MEMORY_TESTS:%=$(BUILD)/tests/%): LDFLAGS += -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=aligned_alloc

# Examples link as a user's program would: public headers, the runtime library, libm and zlib.
$(BUILD)/docs/examples/%: docs/examples/%.c $(BUILD)/libkvbook.a $(BUILD)/libkvb-kmeans.a
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 $(WARN) -Werror $(if $(SAN),-fsanitize=$(SAN)) -Iinclude -o $@ $< $(BUILD)/libkvb-kmeans.a $(BUILD)/libkvbook.a -fopenmp $(FAISS_LIBS) $(LIBS_RUNTIME)

# The manual and the completions, out of the tables of flags; scdoc makes the manual, and where it is missing `make man` says so.
$(BUILD)/pages: $(BUILD)/obj/tools/pages/pages.o $(call obj,$(filter-out tools/main.c,$(TOOL_SRC))) $(BUILD)/libkvb-all.a
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

man: $(BUILD)/man/stamp

$(BUILD)/man/stamp: $(BUILD)/pages docs/man/kvbook.1.scd tools/pages/make.sh tools/pages/tidy.awk
	$(Q)tools/pages/make.sh $(BUILD)/pages $(BUILD)/man

tests: $(TESTS) $(FUZZERS) $(EXAMPLES) $(BUILD)/tests/make_tiny_gguf $(BUILD)/tests/model_probe $(BUILD)/tests/fault.so

check:
	$(Q)tools/deps.sh --optional
	$(Q)tests/check.sh

# With WRITE=1 the committed golden files are made anew out of what transformers computes.
check-models: all $(BUILD)/tests/model_probe
	$(Q)BUILD=$(BUILD) tests/reference/run.sh $(if $(WRITE),--write)

# The Python package, installed by pip into a virtual environment and tested from there.
check-python: all $(BUILD)/tests/make_tiny_gguf
	$(Q)BUILD=$(BUILD) tests/python/run.sh

wheel: all
	$(Q)python3 -m pip wheel -q --no-deps -w $(BUILD)/wheel ./python

check-quick: all tests
	$(Q)BUILD=$(BUILD) tests/run.sh

asan:
	$(Q)$(MAKE) SAN=address,undefined BUILD=build/asan OPT=-O1 tests
	$(Q)BUILD=build/asan tests/run.sh

tsan:
	$(Q)tests/tsan.sh

fuzz:
	$(Q)tests/fuzz/run.sh

golden: $(BUILD)/tests/golden/make_golden
	$(Q)$(BUILD)/tests/golden/make_golden tests/golden
	$(Q)tests/golden-errors/forge.py
	$(Q)tests/golden-errors/forge_kvp.py

demo:
	$(Q)tools/demo.sh

# The GPU runtime: the runtime library and its kernels, with the CUDA runtime inside, so that a user needs the driver alone.
NVCC ?= $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))
CUDA_ARCH ?= 80 90a
NVCCFLAGS = -std=c++17 -O3 -Iinclude -I. $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$(a),code=sm_$(a)) \
	-Xcompiler -Wall,-Wextra,-fPIC,-fvisibility=hidden$(if $(WERROR),$(comma)-Werror -Werror all-warnings)
comma = ,
CUDA_OBJ = $(call obj,$(RUNTIME_SRC)) $(patsubst %.cu,$(BUILD)/obj/%.o,$(CUDA_SRC))

define nvcc_compile
	@mkdir -p $(@D)
	$(Q)[ -n "$(NVCC)" ] || { echo 'no nvcc: install the CUDA Toolkit, or set NVCC' >&2; exit 1; }
	@[ $(V) = 1 ] || echo '  NVCC $<'
	$(Q)$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
endef

$(BUILD)/obj/%.o: %.cu $(BUILD)/flags
	$(nvcc_compile)
ifneq ($(CUDA_BUILD),$(BUILD))
$(CUDA_CACHE_OBJ): $(CUDA_BUILD)/obj/%.o: %.cu
	$(nvcc_compile)
endif

$(BUILD)/libkvbook-cuda.a: $(CUDA_OBJ)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/libkvbook-cuda.so: $(CUDA_OBJ)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(NVCC) $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$(a),code=sm_$(a)) -shared \
		-Xlinker -soname=libkvbook-cuda.so.1,-z,relro,-z,now -o $@ $^ $(LIBS_RUNTIME)

# zlib goes in as an archive: these run on machines that were lent for it, with nothing installed.
CUDA_PROGRAMS = $(BUILD)/tests/cuda/gpu_cache_test $(BUILD)/bench/cuda_decode_bench
$(CUDA_PROGRAMS): $(BUILD)/%: $(BUILD)/obj/%.o $(BUILD)/libtest.a $(BUILD)/libkvbook-cuda.a $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(NVCC) $(foreach a,$(CUDA_ARCH),-gencode=arch=compute_$(a),code=sm_$(a)) -o $@ $^ -l:libz.a -lm

# The example links as a user's program would.
$(BUILD)/docs/examples/cuda_example: docs/examples/cuda_example.cu $(BUILD)/libkvbook-cuda.a
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCCFLAGS) -o $@ $^ $(LIBS_RUNTIME)

# The command with --device cuda, and the programs of its tests.
cuda-calib:
	$(Q)$(MAKE) CUDA=1 BUILD=$(BUILD)/cuda CUDA_BUILD=$(BUILD) $(patsubst %,$(BUILD)/cuda/%,kvbook tests/make_tiny_gguf tests/cuda/gpu_kmeans_test \
		tests/cuda/gpu_capture_compare bench/cuda_calib_bench)

check-cuda-calib: cuda-calib
	$(Q)BUILD=$(BUILD)/cuda tests/cuda/calib.sh
	$(Q)BUILD=$(BUILD)/cuda tests/cuda/eval.sh

bench-cuda-calib: cuda-calib
	$(Q)BUILD=$(BUILD)/cuda bench/cuda_calib.sh

cuda: $(BUILD)/libkvbook-cuda.a $(BUILD)/libkvbook-cuda.so $(BUILD)/docs/examples/cuda_example $(CUDA_PROGRAMS)

check-cuda: cuda
	$(Q)tests/cuda/check.sh

bench-cuda: cuda
	$(Q)bench/cuda_bench.sh

BENCH_SRC = $(wildcard bench/*_bench.c)
BENCHES = $(patsubst %.c,$(BUILD)/%,$(BENCH_SRC))

$(BUILD)/bench/%: $(BUILD)/obj/bench/%.o $(call obj,$(filter-out tools/main.c,$(TOOL_SRC))) $(BUILD)/libkvb-all.a
	@mkdir -p $(@D)
	@[ $(V) = 1 ] || echo '  LD $@'
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

bench: all $(BENCHES)

# What goes into a file must not name DESTDIR, which is gone once the tree is where it belongs.
install: all man
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/kvbook
	install $(BUILD)/kvbook $(DESTDIR)$(PREFIX)/bin/kvbook
	install -m 644 $(BUILD)/libkvbook.a $(BUILD)/libkvb-kmeans.a $(DESTDIR)$(PREFIX)/lib/
	install -m 644 $(BUILD)/libkvbook.so $(DESTDIR)$(PREFIX)/lib/libkvbook.so.1
	ln -sf libkvbook.so.1 $(DESTDIR)$(PREFIX)/lib/libkvbook.so
	install -m 644 $(BUILD)/libkvb-kmeans.so $(DESTDIR)$(PREFIX)/lib/libkvb-kmeans.so.1
	ln -sf libkvb-kmeans.so.1 $(DESTDIR)$(PREFIX)/lib/libkvb-kmeans.so
	install -m 644 include/kvbook/*.h $(DESTDIR)$(PREFIX)/include/kvbook/
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions
	install -m 644 $(BUILD)/man/kvbook.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kvbook
	install -m 644 $(BUILD)/man/_kvbook $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kvbook
	for page in $(BUILD)/man/*.1; do [ ! -e "$$page" ] || install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 "$$page"; done
	sed -e 's|@PREFIX@|$(PREFIX)|' -e "s|@VERSION@|$$($(BUILD)/kvbook --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/;q')|" \
		tools/kvbook.pc.in >$(DESTDIR)$(PREFIX)/lib/pkgconfig/kvbook.pc

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/kvbook $(DESTDIR)$(PREFIX)/lib/libkvbook.a $(DESTDIR)$(PREFIX)/lib/libkvb-kmeans.a
	rm -f $(DESTDIR)$(PREFIX)/lib/libkvbook.so $(DESTDIR)$(PREFIX)/lib/libkvbook.so.1
	rm -f $(DESTDIR)$(PREFIX)/lib/libkvb-kmeans.so $(DESTDIR)$(PREFIX)/lib/libkvb-kmeans.so.1
	rm -f $(DESTDIR)$(PREFIX)/lib/pkgconfig/kvbook.pc
	rm -rf $(DESTDIR)$(PREFIX)/include/kvbook
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kvbook $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kvbook
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/kvbook.1 $(DESTDIR)$(PREFIX)/share/man/man1/kvbook-*.1

deb: all man
	$(Q)tools/deb.sh $(BUILD)

dist:
	git archive --prefix=kvbook/ -o kvbook.tar.gz HEAD

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

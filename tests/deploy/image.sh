#!/bin/sh
# image.sh DIRECTORY: does what the Dockerfile says, without Docker, in a clean copy of this commit below DIRECTORY, and
# prints where the binary lies.
#
# A stage is a directory that stands for its root. RUN is done where it says, with this machine's node and cargo in the
# place of the images', but not in the last stage, which is a bare system. Paths of COPY that no stage made are the
# images' own and are taken from this machine.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/../.."
work=$1
mkdir -p "$work"
work=$(CDPATH='' cd -- "$work" && pwd)
context=$work/context
say() { printf '%s\n' "image: $*" >&2; }

git clone --quiet --no-hardlinks . "$context"
grep -v '^#' .dockerignore | while read -r ignored; do
    [ -z "$ignored" ] || rm -rf "${context:?}/$ignored"
done
unset CARGO_TARGET_DIR

# One instruction a line.
sed -e '/^ *#/d' "$context/Dockerfile" | sed -e ':a' -e '/\\$/N; s/\\\n//; ta' >"$work/steps"
last=$(grep -c '^FROM ' "$work/steps")

# place ROOT PATH: where a path of a stage lies.
place() {
    case $2 in
    /*) printf '%s\n' "$1$2" ;;
    *) printf '%s\n' "$1$cwd/$2" ;;
    esac
}

copy() {
    from=$context
    case $1 in --from=*)
        from=$work/stages/${1#--from=}
        shift
        ;;
    esac
    for target in "$@"; do :; done
    target=$(place "$root" "$target")
    while [ $# -gt 1 ]; do
        source=$from/${1#/}
        [ -e "$source" ] || source=$1
        if [ -d "$source" ]; then
            mkdir -p "$target"
            cp -R "$source/." "$target/"
        else
            case $target in */) mkdir -p "$target" ;; *) mkdir -p "${target%/*}" ;; esac
            cp "$source" "$target"
        fi
        shift
    done
}

stage=0
while IFS= read -r step; do
    [ -n "$step" ] || continue
    say "$step"
    instruction=${step%% *} rest=${step#* }
    case $instruction in
    FROM)
        stage=$((stage + 1)) cwd=''
        case $rest in *' AS '*) root=$work/stages/${rest##* } ;; *) root=$work/stages/last ;; esac
        mkdir -p "$root"
        ;;
    WORKDIR)
        cwd=$rest
        mkdir -p "$root$cwd"
        ;;
    # shellcheck disable=SC2086 # words
    COPY) copy $rest ;;
    RUN)
        if [ "$stage" -eq "$last" ]; then
            say "not done here"
        else
            line=$(printf '%s\n' "$rest" | sed 's/--mount=[^ ]* *//g')
            (cd "$root$cwd" && sh -eu -c "$line") </dev/null >&2
        fi
        ;;
    esac
done <"$work/steps"

binary=$root/usr/local/bin/couponbook
# The last stage has the C library and little else.
others=$(ldd "$binary" | sed 's/^[[:space:]]*//; s/ .*//' |
    grep -v -e '^linux-vdso\.so' -e 'ld-linux' -e '^libc\.so' -e '^libm\.so' -e '^libgcc_s\.so' -e '^libpthread' -e '^libdl') || true
if [ -n "$others" ]; then
    say "the binary wants libraries that the image does not have: $others"
    exit 1
fi
printf '%s\n' "$binary"

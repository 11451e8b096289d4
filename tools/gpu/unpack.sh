#!/bin/sh
# Takes in one carried folder of pieces, and unpacks an archive once all of its pieces are there.
#   tools/gpu/unpack.sh FOLDER STORE
# FOLDER: what pack.py made for one transfer. STORE: where pieces are kept between transfers; NAME is unpacked to
# STORE/NAME. Any order; a piece that is there already is passed over. Exit 0: unpacked, 3: pieces still missing (named),
# 1: a piece is damaged (named) and was not taken.
set -eu
[ $# -eq 2 ] && [ -d "$1" ] || { echo "usage: $0 FOLDER STORE; FOLDER is one that pack.py made" >&2; exit 2; }
folder=$1 store=$2
set -- "$folder"/*.sha256
[ -f "$1" ] || { echo "$folder holds no list of pieces (NAME.sha256): carry the folder whole" >&2; exit 2; }
list=$1
name=$(basename "$list" .sha256)
kept=$store/.pieces/$name
mkdir -p "$kept"
if [ -f "$kept/list" ] && ! cmp -s "$list" "$kept/list"; then
    echo "$list is of another packing than the pieces in $kept: remove that folder, and carry all pieces anew" >&2
    exit 2
fi
cp "$list" "$kept/list"
[ ! -d "$folder/zstd" ] || cp -R "$folder/zstd" "$store/.pieces/"

same() { # FILE HASH
    [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$2" ]
}
missing=
while read -r hash piece; do
    if [ -f "$folder/$piece" ] && [ ! -f "$kept/$piece" ]; then
        cp "$folder/$piece" "$kept/$piece.part"
        if ! same "$kept/$piece.part" "$hash"; then
            rm "$kept/$piece.part"
            echo "$folder/$piece is damaged: its SHA-256 is not the one in $list; carry it again" >&2
            exit 1
        fi
        mv "$kept/$piece.part" "$kept/$piece"
    fi
    [ -f "$kept/$piece" ] || missing="$missing $piece"
done <"$list"
if [ -n "$missing" ]; then
    echo "$name: still missing:$missing"
    exit 3
fi
[ ! -f "$store/$name/.unpacked" ] || { echo "$name: unpacked already"; exit 0; }

zstd=$(command -v zstd) || { zstd=$store/.pieces/zstd/zstd; LD_LIBRARY_PATH=$store/.pieces/zstd; export LD_LIBRARY_PATH; }
rm -rf "$store/.$name.new" "$store/$name"
mkdir "$store/.$name.new"
# A pipe's status is its last command's: zstd says for itself whether it reached the end.
{ cut -d ' ' -f 3 "$list" | while read -r piece; do cat "$kept/$piece"; done | "$zstd" -q -d || touch "$kept/failed"; } |
    tar -x -f - -C "$store/.$name.new"
[ ! -f "$kept/failed" ] || { rm -f "$kept/failed"; echo "$name: zstd cannot unpack the pieces in $kept" >&2; exit 1; }
touch "$store/.$name.new/.unpacked"
mv "$store/.$name.new" "$store/$name"
echo "$name: unpacked to $store/$name"

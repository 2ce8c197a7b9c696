// Lays a .gz and a .br beside each text file of dist/, so that the service packs nothing while it runs.
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

const dist = new URL('../dist/', import.meta.url)
const names = readdirSync(dist, { recursive: true }).filter((name) => /\.(js|css|html|svg)$/.test(name))
for (const name of names) {
  const plain = readFileSync(new URL(name, dist))
  if (plain.length < 1024) continue // the header would be most of the answer
  writeFileSync(new URL(`${name}.gz`, dist), gzipSync(plain, { level: 9 }))
  const quality = { [constants.BROTLI_PARAM_QUALITY]: 11 }
  writeFileSync(new URL(`${name}.br`, dist), brotliCompressSync(plain, { params: quality }))
}

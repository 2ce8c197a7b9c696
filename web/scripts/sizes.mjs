// Measures what a browser loads, in gzipped kilobytes of JavaScript, and fails where it is more than promised:
// a holder's route (the entry, sign-in and "My coupons") and everything that an administrator may ever load.
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'

const HOLDER_KB = 120
const ADMIN_KB = 250

const dist = new URL('../dist/', import.meta.url)
const manifest = JSON.parse(readFileSync(new URL('manifest.json', dist), 'utf8'))

/** An entry of the manifest with everything that it imports, dynamic imports left out. */
function reach(key, seen = new Set()) {
  if (seen.has(key)) return seen
  seen.add(key)
  for (const next of manifest[key].imports ?? []) reach(next, seen)
  return seen
}

function kilobytes(keys) {
  const files = new Set([...keys].map((key) => manifest[key].file).filter((file) => file.endsWith('.js')))
  let bytes = 0
  for (const file of files) bytes += gzipSync(readFileSync(new URL(file, dist)), { level: 9 }).length
  return bytes / 1000
}

const screens = Object.keys(manifest).filter((key) => /(SignIn|MyCoupons)\.vue$/.test(key))
if (screens.length !== 2) throw new Error(`the holder's screens were not found in the manifest: ${screens}`)
const holder = new Set(['index.html', ...screens].flatMap((key) => [...reach(key)]))
const measured = [
  ["holder's route", kilobytes(holder), HOLDER_KB],
  ['everything (admin)', kilobytes(Object.keys(manifest)), ADMIN_KB],
]
for (const [what, size, limit] of measured) {
  console.log(`${what.padEnd(20)} ${size.toFixed(1).padStart(6)} kB of ${limit} kB, gzipped JavaScript`)
  if (size > limit) process.exitCode = 1
}

// @vitest-environment node
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
// @ts-expect-error a plain script
import { generate } from '../scripts/types.mjs'

test('the types are those of docs/openapi.json; if not, `npm run types` writes them', async () => {
  const written = readFileSync(new URL('../src/api/schema.d.ts', import.meta.url), 'utf8')
  expect(written === (await generate())).toBe(true)
}, 60_000)

// Writes src/api/schema.d.ts from docs/openapi.json; with --check only says whether it is up to date.
import { readFileSync, writeFileSync } from 'node:fs'
import openapiTS, { astToString } from 'openapi-typescript'

const document = new URL('../../docs/openapi.json', import.meta.url)
const target = new URL('../src/api/schema.d.ts', import.meta.url)

export async function generate() {
  const types = astToString(await openapiTS(document, { alphabetize: true }))
  return `// Generated from docs/openapi.json by \`npm run types\`; do not edit.\n\n${types}`
}

if (process.argv[1]?.endsWith('types.mjs')) {
  const fresh = await generate()
  if (!process.argv.includes('--check')) {
    writeFileSync(target, fresh)
  } else if (readFileSync(target, 'utf8') !== fresh) {
    console.error('src/api/schema.d.ts is out of date: run `npm run types`')
    process.exitCode = 1
  }
}

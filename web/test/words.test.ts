// @vitest-environment node
import { readFileSync, readdirSync } from 'node:fs'
import { expect, test } from 'vitest'
import { createI18n } from 'vue-i18n'
import admin from '@/i18n/en/admin'
import common from '@/i18n/en/common'
import holder from '@/i18n/en/holder'

const source = new URL('../src/', import.meta.url)
const files = (readdirSync(source, { recursive: true }) as string[]).filter((name) => /\.(vue|ts)$/.test(name) && !name.startsWith('i18n/en'))
const text = files.map((name) => readFileSync(new URL(name, source), 'utf8'))

function keys(words: object, path = ''): string[] {
  return Object.entries(words).flatMap(([name, value]) => (typeof value === 'object' ? keys(value, `${path}${name}.`) : [`${path}${name}`]))
}
const known = new Set(keys({ ...common, ...holder, ...admin }))

test('every word that a screen asks for exists', () => {
  const asked = text.flatMap((code) => [...code.matchAll(/\bt\(\s*'([\w.]+)'/g)].map((match) => match[1]!))
  expect(asked.length).toBeGreaterThan(200)
  expect(asked.filter((key) => !known.has(key))).toEqual([])
})

test('no group of words is said twice', () => {
  const groups = [common, holder, admin].flatMap((words) => Object.keys(words))
  expect(groups.filter((name, n) => groups.indexOf(name) !== n)).toEqual([])
})

test('every word can be read by the formatter', () => {
  const i18n = createI18n({ legacy: false, locale: 'en', messages: { en: { ...common, ...holder, ...admin } }, missingWarn: false })
  const values = new Proxy({}, { get: () => 'x', has: () => true }) as Record<string, string>
  for (const key of known) {
    const said = i18n.global.t(key, values)
    if (key.includes('.')) expect(said, key).not.toBe(key)
    expect(said, key).not.toMatch(/[{}]/)
  }
})

// The real binary with a database of its own, and the real browser, for tests that click.
import { spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import assert from 'node:assert/strict'
import { chromium } from 'playwright-core'

const root = fileURLToPath(new URL('../../', import.meta.url))
const target = process.env.CARGO_TARGET_DIR ?? join(root, 'target')
const binary = process.env.COUPONBOOK_BIN ?? join(target, 'debug/couponbook')
const browsers = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].filter(Boolean)
export const shots = join(root, 'docs/screenshots')
const axe = readFileSync(fileURLToPath(import.meta.resolve('axe-core/axe.min.js')), 'utf8')

/** Operations that have a screen before the service has them; the day it has one, its answers count. */
const PLANNED = ['/v1/webhooks', '/v1/audit/verify']

export const ADMIN = { email: 'admin@example.com', password: 'a-long-demo-phrase' }
export const HOLDER = { email: 'mia@example.com', name: 'Mia Holder', password: 'another-long-phrase' }

/** Starts `couponbook up` on a free port; `stop` ends it and takes its data away. */
export async function service() {
  const dir = mkdtempSync(join(tmpdir(), 'couponbook-e2e-'))
  chmodSync(dir, 0o755) // as root the database runs as somebody else, who has to come through
  // Settings of whoever runs the tests are none of this service, and a name that is no setting keeps it from starting.
  const others = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('COUPONBOOK_') && name !== 'DATABASE_URL'))
  const child = spawn(binary, ['up', '--listen', '127.0.0.1:0', '--data-dir', join(dir, 'data')], {
    env: { ...others, COUPONBOOK_ADMIN_EMAIL: ADMIN.email, COUPONBOOK_ADMIN_PASSWORD: ADMIN.password, COUPONBOOK_LOG: 'warn', COUPONBOOK_RATE_LIMITS: 'off' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  const url = await new Promise((resolve, reject) => {
    const listen = (chunk) => {
      said += chunk
      const ready = /couponbook ready on (http:\S+)/.exec(said)
      if (ready) resolve(ready[1])
    }
    child.stdout.on('data', listen)
    child.stderr.on('data', (chunk) => (said += chunk))
    child.on('exit', (code) => reject(new Error(`the service ended (${code}):\n${said}`)))
  })
  const stop = async () => {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGTERM')
    await ended
    rmSync(dir, { recursive: true, force: true })
  }
  // Else every test would wait in vain.
  const first = await (await fetch(url, { headers: { accept: 'text/html' } })).text()
  if (!first.includes('/assets/')) {
    await stop()
    throw new Error(`${binary} was built without the UI: \`npm run build\`, then \`cargo build\``)
  }
  return { url, stop, api: await client(url) }
}

/** The API as the administrator, to prepare what a test is not about. */
async function client(url) {
  const send = async (method, path, body, headers = {}) => {
    const text = body === undefined || typeof body === 'string' ? body : JSON.stringify(body)
    const response = await fetch(url + path, { method, body: text, headers: { 'content-type': 'application/json', ...auth, ...headers } })
    const answer = await response.text()
    if (!response.ok) throw Object.assign(new Error(`${method} ${path}: ${response.status} ${answer}`), { status: response.status })
    return answer ? JSON.parse(answer) : undefined
  }
  let auth = {}
  const session = await send('POST', '/v1/auth/login', ADMIN)
  auth = { authorization: `Bearer ${session.access_token}` }
  const document = await (await fetch(`${url}/openapi.json`)).json()
  return {
    send,
    /** Whether this service has an operation. */
    has: (path) => path in document.paths,
    book: async (settings, codes = []) => {
      const book = await send('POST', '/v1/books', { name: 'Spring sale', ...settings })
      if (codes.length) await send('POST', `/v1/books/${book.id}/codes`, { codes }, { prefer: 'wait=30' })
      return book
    },
    user: (user) => send('POST', '/v1/users', user),
    assign: (book_id, user_id, count = 1) => send('POST', '/v1/coupons/assign', { book_id, user_id, count }, { prefer: 'wait=30' }),
  }
}

export async function browser() {
  const executablePath = browsers.find((path) => existsSync(path))
  if (!executablePath) throw new Error('no Chromium was found; CHROMIUM names it')
  return chromium.launch({ executablePath, headless: true, args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-gpu', '--disable-dev-shm-usage'] })
}

/** A page that counts clicks and remembers everything that it should not have done. */
export async function open(chrome, { url, api }, options = {}) {
  const { width = 1280, height = 800, dark = false, allow = [] } = options
  const context = await chrome.newContext({ baseURL: url, viewport: { width, height }, colorScheme: dark ? 'dark' : 'light', reducedMotion: 'reduce', timezoneId: 'Europe/Paris', locale: 'en-GB' })
  context.setDefaultTimeout(15_000)
  await context.addInitScript(countShifts)
  const page = await context.newPage()
  const faults = []
  const foreign = []
  const isPlanned = (address) => PLANNED.some((path) => new URL(address).pathname.startsWith(path) && !api.has(path))
  page.on('pageerror', (error) => faults.push(`page: ${error.message}`))
  page.on('console', (message) => {
    if (message.type() !== 'error' && message.type() !== 'warning') return
    const address = message.location().url
    if (message.text().startsWith('Failed to load resource') && address && isPlanned(address)) return
    if (allow.some((pattern) => pattern.test(message.text()))) return
    faults.push(`console: ${message.text()} ${address}`)
  })
  page.on('request', (request) => { if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) foreign.push(request.url()) })
  const counted = { clicks: 0 }
  const click = async (locator) => { counted.clicks++; await locator.click() }
  const check = () => { assert.deepEqual(faults, [], 'errors in the console'); assert.deepEqual(foreign, [], 'requests to others') }
  const signIn = async ({ email, password }) => {
    await page.goto('/sign-in')
    await page.getByLabel('E-mail').fill(email)
    await page.getByLabel('Password').fill(password)
    await click(page.getByRole('button', { name: 'Sign in' }))
    await page.waitForURL((address) => !address.pathname.startsWith('/sign-in'))
  }
  return { page, context, faults, foreign, counted, click, check, signIn }
}

/** The faults of accessibility that axe calls serious or critical. */
export async function unaccessible(page) {
  await page.evaluate(axe)
  const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }))
  return found.violations.filter(({ impact }) => impact === 'serious' || impact === 'critical').map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => `${node.html.slice(0, 160)} ${node.any[0]?.message ?? ''}`).join(' | ')}`)
}

/** Adds up how far the page has moved under the reader's eyes without being asked to. */
function countShifts() {
  globalThis.shifted = 0
  new PerformanceObserver((list) => { for (const entry of list.getEntries()) if (!entry.hadRecentInput) globalThis.shifted += entry.value }).observe({ type: 'layout-shift', buffered: true })
}
export const shifted = (page) => page.evaluate(() => globalThis.shifted)

/** Whether the page can be scrolled sideways. */
export const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)

/** Waits until the page is drawn and nothing is being loaded: no placeholders, no request for a moment. */
export async function settled(page) {
  await page.locator('h1').first().waitFor().catch(() => {})
  await page.waitForLoadState('networkidle').catch(() => {})
  await page.locator('.skeleton').first().waitFor({ state: 'detached' }).catch(() => {})
}

/** Those that the documents show. */
const KEPT = ['overview-light', 'book-light', 'new-book', 'import', 'generate', 'distribute-light', 'my-coupons-dark-360', 'use-dark-360']

/** With SCREENSHOTS=1 the documents' pictures are made anew; with a directory, all are laid there to be looked at. */
export async function shot(page, name, whole = false) {
  const wanted = process.env.SCREENSHOTS
  if (!wanted || (wanted === '1' && !KEPT.includes(name))) return
  const place = wanted === '1' ? shots : wanted
  mkdirSync(place, { recursive: true })
  const size = page.viewportSize()
  // A taller window instead of a stitched picture, in whose middle the bar at the foot would cover something.
  if (whole) await page.setViewportSize({ ...size, height: Math.max(size.height, await page.evaluate(() => document.documentElement.scrollHeight)) })
  await page.screenshot({ path: join(place, `${name}.png`) })
  await page.setViewportSize(size)
}

export const csv = (codes) => ({ name: 'spring-sale.csv', mimeType: 'text/csv', buffer: Buffer.from(['code', ...codes].join('\n')) })

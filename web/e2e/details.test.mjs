// What is easily overlooked: questions before something is gone, the focus, names in place of ids, honest plans.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { ADMIN, HOLDER, browser, open, service } from './harness.mjs'

let chrome
let running
let mia
before(async () => {
  ;[chrome, running] = await Promise.all([browser(), service()])
  mia = await running.api.user(HOLDER)
})
after(async () => {
  await chrome?.close()
  await running?.stop()
})

const focused = (page) => page.evaluate(() => document.activeElement?.getAttribute('aria-label') ?? document.activeElement?.textContent?.trim())

test('a dialogue begins at its first field and gives the focus back; nobody is deleted without being asked', async () => {
  const { api } = running
  const gone = await api.user({ email: 'gone@example.com', name: 'Gone Tomorrow' })
  const { page, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto('/settings/users')
  await page.getByRole('button', { name: 'New user' }).press('Enter')
  await page.getByRole('dialog').waitFor()
  assert.equal(await page.evaluate(() => document.activeElement?.labels?.[0]?.textContent), 'Name')
  await page.keyboard.press('Escape')
  await page.getByRole('dialog').waitFor({ state: 'detached' })
  assert.equal(await focused(page), 'New user')
  const remove = async () => {
    await page.getByRole('button', { name: 'Edit: Gone Tomorrow' }).click()
    await page.getByRole('button', { name: 'Delete the user' }).click()
    await page.getByText('This cannot be undone.').waitFor()
  }
  await remove()
  await page.getByRole('dialog').getByRole('button', { name: 'Cancel' }).click()
  assert.equal((await api.send('GET', `/v1/users/${gone.id}`)).disabled, false)
  await remove()
  await page.getByRole('dialog').getByRole('button', { name: 'Delete the user' }).click()
  await page.getByText('Deleted and made anonymous.').waitFor()
  assert.equal((await api.send('GET', `/v1/users/${gone.id}`)).disabled, true)
  check()
})

test('a job that an API key asked for names the key', async () => {
  const { api } = running
  const book = await api.book({ name: 'By a program' })
  const { key } = await api.send('POST', '/v1/api-keys', { name: 'Shop', scopes: ['manage'] })
  const answer = await fetch(`${running.url}/v1/books/${book.id}/codes`, { method: 'POST', headers: { 'x-api-key': key, 'content-type': 'application/json', prefer: 'wait=30' }, body: '{"codes":["P-1"]}' })
  const { page, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto(`/jobs/${(await answer.json()).id}`)
  await page.getByText('API key Shop').waitFor()
  check() // to ask for a user of this id would be an error in the console
})

test('a plan that is short promises what it can give, and nothing where it would give nothing', async () => {
  const { api } = running
  const users = [mia]
  for (let n = 0; n < 4; n++) users.push(await api.user({ email: `short${n}@example.com`, name: `Short ${n}` }))
  const book = await api.book({ name: 'Two tickets' }, ['TICKET-1', 'TICKET-2'])
  const pool = await api.send('POST', '/v1/pools', { name: 'Fans' })
  await api.send('POST', `/v1/pools/${pool.id}/members`, { user_ids: users.map(({ id }) => id) })
  await api.send('PATCH', `/v1/users/${users[4].id}`, { disabled: true })
  const { page, click, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto(`/distributions/new?book=${book.id}&pool=${pool.id}`)
  await page.getByText('2 codes are missing, so nothing would be given.').waitFor()
  await page.getByRole('button', { name: 'Distribute', exact: true, disabled: true }).waitFor()
  await page.getByLabel('If there is not enough').selectOption('partial')
  await click(page.getByRole('button', { name: 'Assign 2 codes to 2 people', disabled: false }))
  await page.getByText('completed, some short').waitFor()
  await page.getByText('account disabled').first().waitFor()
  const [file] = await Promise.all([page.waitForEvent('download'), click(page.getByRole('button', { name: 'Download', exact: true }))])
  assert.equal(readFileSync(await file.path(), 'utf8').trimEnd().split('\r\n').length, 1 + 5)
  check()
})

test('coupons of a book are narrowed to a holder', async () => {
  const { api } = running
  const book = await api.book({ name: 'Many holders' }, ['H-1', 'H-2', 'H-3'])
  await api.assign(book.id, mia.id)
  const { page, click, check, signIn } = await open(chrome, running)
  await signIn(ADMIN)
  await page.goto(`/books/${book.id}`)
  const rows = page.getByRole('table', { name: 'Coupons' }).getByRole('row')
  await rows.nth(3).waitFor()
  await page.getByRole('combobox', { name: 'Find a holder' }).fill('mia')
  await click(page.getByRole('option', { name: /^Mia Holder/ }))
  await page.getByRole('button', { name: 'Holder: Mia Holder' }).waitFor()
  await rows.nth(2).waitFor({ state: 'detached' })
  assert.equal(await rows.count(), 2, 'the head and one coupon')
  check()
})

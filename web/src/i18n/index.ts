/** The words of the page. English for now: another language is another folder like `en`, loaded when it is chosen. */
import { createI18n } from 'vue-i18n'
import common from './en/common'
import holder from './en/holder'

export const i18n = createI18n({
  legacy: false,
  locale: 'en',
  fallbackLocale: 'en',
  messages: { en: { ...common, ...holder } },
  missingWarn: import.meta.env.DEV,
  fallbackWarn: false,
})

let admin: Promise<void> | null = null

/** The words that only administrators read. */
export function loadAdminWords(): Promise<void> {
  admin ??= import('./en/admin').then(({ default: words }) => i18n.global.mergeLocaleMessage('en', words))
  return admin
}

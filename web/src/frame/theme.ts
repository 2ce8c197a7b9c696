/** Light or dark: the system's choice until somebody makes another. */
import { computed, ref, watchEffect } from 'vue'

export type Choice = 'system' | 'light' | 'dark'
const KEY = 'couponbook.theme'
const stored = localStorage.getItem(KEY)
export const choice = ref<Choice>(stored === 'light' || stored === 'dark' ? stored : 'system')

const dark = matchMedia('(prefers-color-scheme: dark)')
const systemIsDark = ref(dark.matches)
dark.addEventListener('change', (event) => (systemIsDark.value = event.matches))

export const theme = computed<'light' | 'dark'>(() =>
  choice.value === 'system' ? (systemIsDark.value ? 'dark' : 'light') : choice.value,
)

watchEffect(() => {
  document.documentElement.dataset.theme = theme.value
})

export function nextTheme(): void {
  choice.value = choice.value === 'system' ? 'light' : choice.value === 'light' ? 'dark' : 'system'
  if (choice.value === 'system') localStorage.removeItem(KEY)
  else localStorage.setItem(KEY, choice.value)
}

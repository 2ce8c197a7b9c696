/** The service's clock as a value that moves once a second; one timer for all who look, none while nobody does. */
import { onScopeDispose, readonly, ref, type Ref } from 'vue'
import { serverNow } from '@/api/clock'

const now = ref(serverNow())
let watchers = 0
let timer = 0

export function useNow(): Readonly<Ref<number>> {
  if (watchers++ === 0) {
    now.value = serverNow()
    timer = window.setInterval(() => (now.value = serverNow()), 1_000)
  }
  onScopeDispose(() => {
    if (--watchers === 0) clearInterval(timer)
  })
  return readonly(now)
}
